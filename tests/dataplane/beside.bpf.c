// SPDX-License-Identifier: Apache-2.0
/* Somebody else's program beside ours: counts what it sees, notes the last packet's metadata, and returns what it is told. */
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 9);
	__type(key, __u32);
	__type(value, __u64);
} beside SEC(".maps");

static __always_inline __u64 *at(__u32 index)
{
	return bpf_map_lookup_elem(&beside, &index);
}

SEC("tc")
int watch_beside(struct __sk_buff *skb)
{
	__u64 *count = at(0), *mark = at(1), *queue = at(2), *vlan = at(3), *length = at(4), *segments = at(5), *verdict = at(6);
	__u64 *hash = at(7);

	if (!count || !mark || !queue || !vlan || !length || !segments || !verdict || !hash)
		return TC_ACT_UNSPEC;
	*count += 1;
	*mark = skb->mark;
	*queue = skb->queue_mapping;
	*vlan = skb->vlan_present ? skb->vlan_tci : 0;
	*length = skb->len;
	*segments = skb->gso_segs;
	*hash = skb->hash;
	return (int)*verdict;
}

/* As a network plugin's that marks what it lets pass. */
SEC("tc")
int mark_it(struct __sk_buff *skb)
{
	skb->mark = 0xcafe;
	return TC_ACT_UNSPEC;
}

/* As a network plugin's that routes in eBPF: right into the pod whose device on the node is noted, past that device's egress. */
SEC("tc")
int deliver(struct __sk_buff *skb)
{
	__u64 *count = at(0), *device = at(8);

	if (!count || !device || !*device)
		return TC_ACT_UNSPEC;
	*count += 1;
	bpf_skb_change_type(skb, PACKET_HOST);
	return bpf_redirect_peer((__u32)*device, 0);
}

char LICENSE[] SEC("license") = "Apache-2.0";
