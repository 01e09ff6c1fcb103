// SPDX-License-Identifier: Apache-2.0
/* The preprocessor of VirtualTap: `pick` at the tap ports, `send` at the far end of the normalising pair. docs/preprocessor.md */
#include "pick.h"
#include "send.h"
#include "rewrite_send.h"

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
	struct pick *c = begin(skb, 1, tagged, 0);
	int receivers;

	if (!c)
		return TC_ACT_SHOT;
	receivers = flood_list(skb, c, vlan);
	receivers += flood_list(skb, c, ANY_VLAN);
	return receivers ? finish(skb, c) : unattributed(skb, c->segments);
}

static __always_inline __u32 find_quick(__u64 mac_vlan, __u32 ifindex)
{
	__u32 zero = 0, index = (mac_vlan * QUICK_MULTIPLIER ^ ifindex) * QUICK_MULTIPLIER >> 51;
	void *inner = bpf_map_lookup_elem(&quicks, &zero);
	struct quick_bucket *bucket;

	if (!inner)
		return 0;
	bucket = bpf_map_lookup_elem(inner, &index);
	if (!bucket)
		return 0;
	if (bucket->entries[0].mac_vlan == mac_vlan && bucket->entries[0].ifindex == ifindex)
		return bucket->entries[0].place;
	if (bucket->entries[1].mac_vlan == mac_vlan && bucket->entries[1].ifindex == ifindex)
		return bucket->entries[1].place;
	return 0;
}

/* The verdict where it takes neither parsing nor a draw, else -1. */
static __always_inline int decided_early(struct pick_counters *counters, const struct program *program, __u32 bytes)
{
	if (program->rule_count)
		return -1;
	if (!(program->flags & PROGRAM_INCLUDE)) {
		counters->excluded++;
	} else if (program->sampling == SAMPLE_ONE_IN && counters->skip_drawn == drawn_by(program) && counters->skip) {
		counters->skip--;
		counters->unsampled++;
	} else {
		return -1;
	}
	counters->seen++;
	counters->seen_bytes += bytes;
	return TC_ACT_SHOT;
}

/* A packet in one piece whose filter takes no parsing, or is asked about the most common kind: without another call. */
static __always_inline int pick_quickly(struct __sk_buff *skb, int ingress, int tagged, __u32 entry, int strip,
					struct pick_counters *counters, struct program *program, struct pick *c)
{
	__u32 bytes = skb->len + (skb->vlan_present ? 4 : 0) - (strip && tagged ? 4 : 0);
	int verdict = decided_early(counters, program, bytes), include = program->flags & PROGRAM_INCLUDE, parsed = 0;

	if (verdict >= 0)
		return verdict;
	if (program->rule_count) {
		if (tagged || !parse_plain((void *)(long)skb->data, (void *)(long)skb->data_end, &c->packet, ingress))
			return -1;
		parsed = 1;
		include = decide(program, &c->packet);
	}
	counters->seen++;
	counters->seen_bytes += bytes;
	if (!include) {
		counters->excluded++;
		return TC_ACT_SHOT;
	}
	start(skb, c, ingress, tagged, strip);
	c->parsed = parsed;
	admit(skb, c, counters, program, entry);
	return finish(skb, c);
}

static __always_inline int pick_single(struct __sk_buff *skb, int ingress, int tagged, __u32 place)
{
	__u32 slot = place & (MAX_SLOTS - 1), index = place >> QUICK_PROGRAM_SHIFT & (MAX_SLOTS - 1), zero = 0;
	struct pick_counters *counters = bpf_map_lookup_elem(&picked, &slot);
	struct program *program = whole(&programs, index);
	struct pick *c = bpf_map_lookup_elem(&picks, &zero);
	int strip = (place & QUICK_STRIP) != 0, verdict;

	if (!counters || !c)
		return TC_ACT_SHOT;
	if (program && !skb->gso_size) {
		verdict = pick_quickly(skb, ingress, tagged, slot | index << 16, strip, counters, program, c);
		if (verdict >= 0)
			return verdict;
	}
	c = begin(skb, ingress, tagged, strip);
	if (!c)
		return TC_ACT_SHOT;
	if (program)
		judge(skb, c, counters, program, slot | index << 16);
	else
		visit(skb, c, slot | index << 16);
	return finish(skb, c);
}

static __always_inline int pick_listed(struct __sk_buff *skb, int ingress, int tagged, struct source_key *key)
{
	struct source *source = find_source(key);
	struct walk walk = {.skb = skb, .list = source};

	if (!source)
		return unattributed(skb, skb->gso_segs ? skb->gso_segs : 1);
	walk.c = begin(skb, ingress, tagged, source->flags & SOURCE_STRIP);
	if (!walk.c)
		return TC_ACT_SHOT;
	bpf_loop(source->count, visit_listed, &walk, 0);
	return finish(skb, walk.c);
}

static __always_inline int pick(struct __sk_buff *skb, int ingress)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 vlan = 0, ifindex = skb->ifindex, place;
	struct ethernet *eth = data;
	struct source_key key;
	__u64 mac_vlan = 0;
	int tagged = 0;

	if (data + sizeof(*eth) > end)
		return unattributed(skb, 1);
	if (skb->vlan_present) {
		vlan = skb->vlan_tci & 0xfff;
		tagged = 1;
	} else if (is_tag(eth->type)) {
		if (data + sizeof(*eth) + 4 > end)
			return unattributed(skb, 1);
		vlan = bpf_ntohs(*(__be16 *)(data + sizeof(*eth))) & 0xfff;
		tagged = 1;
	}
	/* Eight bytes from the address on are all within the Ethernet header. */
	mac_vlan = (ingress ? *(__u64 *)eth->destination : *(__u64 *)eth->source) & 0xffffffffffffULL;
	if (ingress && mac_vlan & 1)
		return pick_flooded(skb, vlan, tagged);
	place = find_quick(mac_vlan | (__u64)vlan << 48, ifindex);
	if (place)
		return pick_single(skb, ingress, tagged, place);
	key.ifindex = ifindex;
	key.vlan = vlan;
	__builtin_memcpy(key.mac, &mac_vlan, 6);
	return pick_listed(skb, ingress, tagged, &key);
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

/* The copy leaves as it is but for its addresses. Its number only counts. */
static __always_inline int send_rewritten(struct __sk_buff *skb, struct job *j, struct shared *shared, const struct program *program)
{
	__u32 length = skb->len;
	int outcome;

	if (length > j->destination->mtu + ETHERNET) {
		j->counters->dropped_oversize++;
		return TC_ACT_SHOT;
	}
	if (j->ticket->mode & TICKET_LIMITED && program && program->cost_per_byte && !bucket_charge(shared, program, length)) {
		j->counters->limited++;
		return TC_ACT_SHOT;
	}
	/* volatile: else clang merges the two into a write that the verifier refuses. */
	*(volatile __u32 *)&skb->mark = 0;
	*(volatile __u32 *)&skb->queue_mapping = 0;
	outcome = rewrite(skb, j->destination, j->ticket, j->point->destination);
	if (outcome == REWRITTEN && bpf_redirect(j->destination->ifindex, 0) == TC_ACT_REDIRECT) {
		__sync_fetch_and_add(&shared->sequence, 1);
		j->counters->sent++;
		j->counters->sent_bytes += length;
		return TC_ACT_REDIRECT;
	}
	if (outcome == NOT_REWRITABLE)
		j->counters->dropped_not_rewritable++;
	else if (outcome == NO_ID_LEFT)
		j->counters->dropped_no_id++;
	else
		j->counters->dropped_redirect++;
	return TC_ACT_SHOT;
}

static __always_inline int send_copy(struct __sk_buff *skb)
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
	j.copy = &j.scratch->copy;
	j.counters->arrived++;
	if (j.ticket->mode & ~TICKET_CUT)
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
	if (j.ticket->mode & TICKET_CUT)
		unify_checksum(skb);
	if (j.destination->encapsulation == ENCAP_REWRITE)
		return send_rewritten(skb, &j, shared, program);
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
	j.copy->sequence = __sync_fetch_and_add(&shared->sequence, 1);
	verdict = wrap_up(skb, &j) ? TC_ACT_SHOT : TC_ACT_OK;
	/* volatile: else clang merges the two into a write that the verifier refuses. */
	*(volatile __u32 *)&skb->mark = 0;
	*(volatile __u32 *)&skb->queue_mapping = 0;
	if (verdict == TC_ACT_OK)
		verdict = j.copy->parts > 1 ? fragment(skb, &j) : bpf_redirect(j.destination->ifindex, 0);
	if (verdict != TC_ACT_REDIRECT && give_back(shared, &j)) {
		j.counters->dropped_redirect++;
		return TC_ACT_SHOT;
	}
	j.counters->sent++;
	j.counters->sent_bytes += outer_bytes(&j);
	if (j.copy->flags)
		j.counters->truncated++;
	return verdict;
}

SEC("tc")
int send(struct __sk_buff *skb)
{
	return send_copy(skb);
}

/* Where there is an XDP program the veth driver copies what it gets into memory of its own. */
SEC("xdp.frags")
int renew(struct xdp_md *packet)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Apache-2.0";
