// SPDX-License-Identifier: Apache-2.0
/* The edge of a monitor, at the egress of its host-side device: copies that were rewritten to reach it become what they were.
 *
 * They are sent to an address that no stack holds, and what goes on from here has its original destination, which the monitor's
 * does not hold either: with or without this program no stack ever takes a copy for its own and answers it. */
#include "rewrite.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct edge_key);
	__type(value, struct monitor);
} monitors SEC(".maps");

/* Least recently used go first: whoever floods the domain with ids costs others theirs for a second. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 16);
	__type(key, struct id_key);
	__type(value, struct heard);
} meanings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct edge_key);
	__type(value, struct recover_counters);
} counts SEC(".maps");

#define NO_DEVICE 0x7fffffff

/* The end of a packet without its sender hearing of it. TC_ACT_SHOT would become ENOBUFS at a packet socket, on which Open vSwitch
 * gives up the rest of what it was sending; tcx knows no TC_ACT_STOLEN. */
static __always_inline int swallow(void)
{
	return bpf_redirect(NO_DEVICE, 0);
}

static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] && a[4] == b[4] && a[5] == b[5];
}

static __always_inline int is_id(const __u8 *mac)
{
	return (mac[0] & REWRITE_ID_MASK) == REWRITE_ID;
}

/* The answer leaves as if the monitor had sent it, so that every switch on its way learns where copies go. */
static __always_inline int answer(struct __sk_buff *skb, struct rewrite_message *m, struct recover_counters *c)
{
	__u8 asked[6];

	c->probed++;
	__builtin_memcpy(asked, m->from, 6);
	__builtin_memcpy(m->from, m->to, 6);
	__builtin_memcpy(m->to, asked, 6);
	m->kind = REWRITE_ANSWER;
	if (bpf_skb_store_bytes(skb, 0, m, sizeof(*m), 0))
		return swallow();
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

static __always_inline int talk(struct __sk_buff *skb, struct recover_counters *c)
{
	struct id_key key = {.ifindex = skb->ifindex};
	struct heard heard = {};
	struct rewrite_message m;

	if (bpf_skb_load_bytes(skb, 0, &m, sizeof(m)) || m.magic_high != bpf_htons(REWRITE_MAGIC >> 16) ||
	    m.magic_low != bpf_htons(REWRITE_MAGIC & 0xffff) || m.version != REWRITE_VERSION) {
		c->refused++;
		return swallow();
	}
	if (m.kind == REWRITE_PROBE)
		return answer(skb, &m, c);
	if (m.kind != REWRITE_MEANING || !is_id(m.from)) {
		c->refused++;
		return swallow();
	}
	__builtin_memcpy(key.mac, m.from, 6);
	heard.at = bpf_ktime_get_ns();
	heard.family = m.family;
	__builtin_memcpy(heard.meaning.destination, m.destination, 6);
	__builtin_memcpy(heard.meaning.source, m.source, 6);
	__builtin_memcpy(heard.meaning.address, m.address, 16);
	bpf_map_update_elem(&meanings, &key, &heard, BPF_ANY);
	c->told++;
	return swallow();
}

static __always_inline int give_back(struct __sk_buff *skb, struct heard *heard, __u32 flags)
{
	int v6 = heard->family == 6;
	__u32 rewritten[4] = {0, 0, bpf_htonl(0xffff), 0};

	if (v6 ? bpf_skb_load_bytes(skb, IP_OFFSET + 24, rewritten, 16) : bpf_skb_load_bytes(skb, IP_OFFSET + 16, rewritten + 3, 4))
		return -1;
	if ((v6 ? exchange(skb, 1, rewritten, heard->meaning.address) : exchange(skb, 0, rewritten, heard->meaning.address)) < 0)
		return -1;
	if (flags && restore_all_ones(skb, v6, flags))
		return -1;
	return bpf_skb_store_bytes(skb, 0, &heard->meaning, 12, 0);
}

static __always_inline int recover_copy(struct __sk_buff *skb, struct monitor *monitor, struct recover_counters *c, __u8 *head)
{
	struct id_key key = {.ifindex = skb->ifindex};
	struct heard *heard;
	__be16 type = *(__be16 *)(head + 12);

	__builtin_memcpy(key.mac, head + 6, 6);
	key.mac[0] &= REWRITE_ID_MASK;
	heard = is_id(head + 6) ? bpf_map_lookup_elem(&meanings, &key) : 0;
	if (!heard || since(heard->at, bpf_ktime_get_ns()) > REWRITE_FORGET * REWRITE_SECOND) {
		c->unknown++;
		return swallow();
	}
	if (type != bpf_htons(heard->family == 6 ? 0x86dd : 0x0800) || heard->meaning.destination[0] & 1 ||
	    same_mac(heard->meaning.destination, monitor->mac) || give_back(skb, heard, head[6] & ~REWRITE_ID_MASK)) {
		c->refused++;
		return swallow();
	}
	c->recovered++;
	return TC_ACT_UNSPEC;
}

SEC("tc")
int recover(struct __sk_buff *skb)
{
	struct edge_key key = {.ifindex = skb->ifindex};
	struct recover_counters *c;
	struct monitor *monitor;
	__u8 head[16];

	if (bpf_skb_load_bytes(skb, 0, head, 14))
		return TC_ACT_UNSPEC;
	__builtin_memcpy(key.alias, head, 6);
	monitor = bpf_map_lookup_elem(&monitors, &key);
	if (!monitor)
		return TC_ACT_UNSPEC;
	c = bpf_map_lookup_elem(&counts, &key);
	if (!c)
		return swallow();
	return *(__be16 *)(head + 12) == bpf_htons(REWRITE_ETHERTYPE) ? talk(skb, c) : recover_copy(skb, monitor, c, head);
}

char LICENSE[] SEC("license") = "Apache-2.0";
