// SPDX-License-Identifier: Apache-2.0
/* The preprocessor of VirtualTap: `pick` at the tap ports, `send` at the far end of the normalising pair. docs/preprocessor.md */
#include "pick.h"
#include "send.h"

static __always_inline struct source *find_source(struct source_key *key)
{
	__u32 zero = 0;
	void *inner = bpf_map_lookup_elem(&sources, &zero);
	struct source *source;

	if (!inner)
		return 0;
	source = bpf_map_lookup_elem(inner, key);
	if (source)
		return source;
	key->vlan = ANY_VLAN;
	return bpf_map_lookup_elem(inner, key);
}

static __noinline int flood_list(struct __sk_buff *skb, struct pick *c, __u32 vlan)
{
	struct flood_key key = {.ifindex = skb->ifindex, .vlan = vlan};
	struct walk walk = {.skb = skb, .c = c};
	__u32 zero = 0;
	void *inner = bpf_map_lookup_elem(&floods, &zero);
	struct flood *flood;

	if (!inner)
		return 0;
	flood = bpf_map_lookup_elem(inner, &key);
	if (!flood)
		return 0;
	if (bpf_skb_load_bytes(skb, 6, walk.sender, 6))
		return 0;
	walk.list = flood;
	bpf_loop(flood->count, visit_flooded, &walk, 0);
	return flood->count;
}

static __always_inline int pick_flooded(struct __sk_buff *skb, __u32 vlan, int tagged)
{
	struct pick c;
	int receivers;

	begin(skb, &c, 1, tagged, 0);
	receivers = flood_list(skb, &c, vlan);
	receivers += flood_list(skb, &c, ANY_VLAN);
	return receivers ? finish(skb, &c) : unattributed(skb, c.segments);
}

static __always_inline int pick(struct __sk_buff *skb, int ingress)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethernet *eth = data;
	struct source_key key;
	struct source *source;
	struct pick c;
	int tagged = 0;

	if (data + sizeof(*eth) > end)
		return unattributed(skb, 1);
	key.ifindex = skb->ifindex;
	key.vlan = 0;
	__builtin_memcpy(key.mac, ingress ? eth->destination : eth->source, 6);
	if (skb->vlan_present) {
		key.vlan = skb->vlan_tci & 0xfff;
		tagged = 1;
	} else if (is_tag(eth->type)) {
		if (data + sizeof(*eth) + 4 > end)
			return unattributed(skb, 1);
		key.vlan = bpf_ntohs(*(__be16 *)(data + sizeof(*eth))) & 0xfff;
		tagged = 1;
	}
	if (ingress && key.mac[0] & 1)
		return pick_flooded(skb, key.vlan, tagged);
	source = find_source(&key);
	if (!source)
		return unattributed(skb, skb->gso_segs ? skb->gso_segs : 1);
	begin(skb, &c, ingress, tagged, source->flags & SOURCE_STRIP);
	if (source->count == 1) {
		visit(skb, &c, source->entries[0]);
	} else {
		struct walk walk = {.skb = skb, .c = &c, .list = source};

		bpf_loop(source->count, visit_listed, &walk, 0);
	}
	return finish(skb, &c);
}

SEC("tc")
int pick_ingress(struct __sk_buff *skb)
{
	return pick(skb, 1);
}

SEC("tc")
int pick_egress(struct __sk_buff *skb)
{
	return pick(skb, 0);
}

static __always_inline int stale(void)
{
	__u32 zero = 0;
	struct node_counters *counters = bpf_map_lookup_elem(&node, &zero);

	if (counters)
		counters->stale++;
	return TC_ACT_SHOT;
}

SEC("tc")
int send(struct __sk_buff *skb)
{
	__u32 mark = skb->mark, index = mark & 0x3fffff, slot, zero = 0;
	struct program *program = 0;
	struct shared *shared;
	struct job j;
	int verdict;

	j.ticket = bpf_map_lookup_elem(&tickets, &index);
	if (!mark || !j.ticket || j.ticket->mark != mark)
		return stale();
	slot = j.ticket->slot;
	j.counters = bpf_map_lookup_elem(&handled, &slot);
	j.point = bpf_map_lookup_elem(&points, &slot);
	shared = bpf_map_lookup_elem(&slots, &slot);
	j.scratch = bpf_map_lookup_elem(&scratches, &zero);
	if (!j.counters || !j.point || !shared || !j.scratch)
		return TC_ACT_SHOT;
	j.counters->arrived++;
	if (j.ticket->mode != TICKET_WHOLE)
		program = whole(&programs, j.ticket->program);
	if (!next_selected(j.ticket, program)) {
		j.counters->unsampled++;
		return TC_ACT_SHOT;
	}
	j.destination = whole(&destinations, j.point->destination);
	if (!j.point->in_use || j.point->incarnation != j.ticket->incarnation || !j.destination) {
		j.counters->dropped_not_ready++;
		return TC_ACT_SHOT;
	}
	if (j.destination->state) {
		count_state(j.counters, j.destination->state);
		return TC_ACT_SHOT;
	}
	if (skb->gso_size || skb->vlan_present) {
		j.counters->dropped_malformed++;
		return TC_ACT_SHOT;
	}
	if (size_up(&j, skb->len)) {
		j.counters->dropped_oversize++;
		return TC_ACT_SHOT;
	}
	if (j.ticket->mode & TICKET_LIMITED && program && program->cost_per_byte &&
	    !bucket_charge(shared, program, outer_bytes(&j))) {
		j.counters->limited++;
		return TC_ACT_SHOT;
	}
	if (shape(skb, &j)) {
		j.counters->dropped_clone++;
		return TC_ACT_SHOT;
	}
	j.sequence = __sync_fetch_and_add(&shared->sequence, 1);
	verdict = wrap(skb, &j) ? TC_ACT_SHOT : TC_ACT_OK;
	/* volatile: else clang merges the two into a write that the verifier refuses. */
	*(volatile __u32 *)&skb->mark = 0;
	*(volatile __u32 *)&skb->queue_mapping = 0;
	if (verdict == TC_ACT_OK)
		verdict = j.parts > 1 ? fragment(skb, &j) : bpf_redirect(j.destination->ifindex, 0);
	if (verdict != TC_ACT_REDIRECT && give_back(shared, &j)) {
		j.counters->dropped_redirect++;
		return TC_ACT_SHOT;
	}
	j.counters->sent++;
	j.counters->sent_bytes += outer_bytes(&j);
	if (j.flags)
		j.counters->truncated++;
	return verdict;
}

char LICENSE[] SEC("license") = "Apache-2.0";
