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

static __always_inline int flood(struct __sk_buff *skb, struct pick *c, __u32 vlan, const int original)
{
	struct flood_key key = {.ifindex = skb->ifindex, .vlan = vlan};
	struct walk walk = {.skb = skb, .c = c};
	__u32 zero = 0;
	void *inner = bpf_map_lookup_elem(&floods, &zero);
	struct flood *list;

	if (!inner)
		return 0;
	list = bpf_map_lookup_elem(inner, &key);
	if (!list)
		return 0;
	if (bpf_skb_load_bytes(skb, 6, walk.sender, 6))
		return 0;
	walk.list = list;
	if (original)
		bpf_loop(list->count, visit_flooded_original, &walk, 0);
	else
		bpf_loop(list->count, visit_flooded, &walk, 0);
	return list->count;
}

static __noinline int flood_list(struct __sk_buff *skb, struct pick *c, __u32 vlan)
{
	return flood(skb, c, vlan, 0);
}

static __noinline int flood_list_original(struct __sk_buff *skb, struct pick *c, __u32 vlan)
{
	return flood(skb, c, vlan, 1);
}

static __always_inline int pick_flooded(struct __sk_buff *skb, __u32 vlan, int tagged, const int original)
{
	struct pick *c = begin(skb, 1, tagged, 0);
	int receivers;

	if (!c)
		return TC_ACT_SHOT;
	receivers = original ? flood_list_original(skb, c, vlan) : flood_list(skb, c, vlan);
	receivers += original ? flood_list_original(skb, c, ANY_VLAN) : flood_list(skb, c, ANY_VLAN);
	if (!receivers)
		return unattributed(skb->ifindex, c->segments);
	return original ? TC_ACT_SHOT : finish(skb, c);
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
					struct pick_counters *counters, struct program *program, struct pick *c, const int original)
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
	if (original)
		return admit_original(skb, c, counters, program, entry);
	admit(skb, c, counters, program, entry);
	return finish(skb, c);
}

static __always_inline int pick_single(struct __sk_buff *skb, int ingress, int tagged, __u32 place, const int original)
{
	__u32 slot = place & (MAX_SLOTS - 1), index = place >> QUICK_PROGRAM_SHIFT & (MAX_SLOTS - 1), zero = 0;
	struct pick_counters *counters = bpf_map_lookup_elem(&picked, &slot);
	struct program *program = whole(&programs, index);
	struct pick *c = bpf_map_lookup_elem(&picks, &zero);
	int strip = (place & QUICK_STRIP) != 0, verdict;

	if (!counters || !c)
		return TC_ACT_SHOT;
	if (program && !skb->gso_size) {
		verdict = pick_quickly(skb, ingress, tagged, slot | index << 16, strip, counters, program, c, original);
		if (verdict >= 0)
			return verdict;
	}
	c = begin(skb, ingress, tagged, strip);
	if (!c)
		return TC_ACT_SHOT;
	if (original)
		return visit_original(skb, c, slot | index << 16);
	if (program)
		judge(skb, c, counters, program, slot | index << 16);
	else
		visit(skb, c, slot | index << 16);
	return finish(skb, c);
}

static __always_inline int pick_listed(struct __sk_buff *skb, int ingress, int tagged, struct source_key *key, const int original)
{
	struct source *source = find_source(key);
	struct walk walk = {.skb = skb, .list = source};

	if (!source)
		return unattributed(skb->ifindex, skb->gso_segs ? skb->gso_segs : 1);
	walk.c = begin(skb, ingress, tagged, source->flags & SOURCE_STRIP);
	if (!walk.c)
		return TC_ACT_SHOT;
	if (original) {
		bpf_loop(source->count, visit_listed_original, &walk, 0);
		return TC_ACT_SHOT;
	}
	bpf_loop(source->count, visit_listed, &walk, 0);
	return finish(skb, walk.c);
}

static __always_inline int pick(struct __sk_buff *skb, int ingress, const int original)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 vlan = 0, ifindex = skb->ifindex, place;
	struct ethernet *eth = data;
	struct source_key key;
	__u64 mac_vlan = 0;
	int tagged = 0;

	if (data + sizeof(*eth) > end)
		return unattributed(skb->ifindex, 1);
	if (skb->vlan_present) {
		vlan = skb->vlan_tci & 0xfff;
		tagged = 1;
	} else if (is_tag(eth->type)) {
		if (data + sizeof(*eth) + 4 > end)
			return unattributed(skb->ifindex, 1);
		vlan = bpf_ntohs(*(__be16 *)(data + sizeof(*eth))) & 0xfff;
		tagged = 1;
	}
	/* Eight bytes from the address on are all within the Ethernet header. */
	mac_vlan = (ingress ? *(__u64 *)eth->destination : *(__u64 *)eth->source) & 0xffffffffffffULL;
	if (ingress && mac_vlan & 1)
		return pick_flooded(skb, vlan, tagged, original);
	place = find_quick(mac_vlan | (__u64)vlan << 48, ifindex);
	if (place)
		return pick_single(skb, ingress, tagged, place, original);
	key.ifindex = ifindex;
	key.vlan = vlan;
	__builtin_memcpy(key.mac, &mac_vlan, 6);
	return pick_listed(skb, ingress, tagged, &key, original);
}

SEC("tc")
int pick_ingress(struct __sk_buff *skb)
{
	return pick(skb, 1, 0);
}

SEC("tc")
int pick_egress(struct __sk_buff *skb)
{
	return pick(skb, 0, 0);
}

/* At a tap port too, where other CPUs are to work at copies: clones of what is picked leave as those of originals do. A clone owes
 * nothing to the socket by which Open vSwitch has sent the copy: what waits elsewhere doesn't hold back who sent it. */
SEC("tc")
int relay_ingress(struct __sk_buff *skb)
{
	pick(skb, 1, 1);
	return TC_ACT_SHOT;
}

SEC("tc")
int relay_egress(struct __sk_buff *skb)
{
	pick(skb, 0, 1);
	return TC_ACT_SHOT;
}

/* At a pod's host-side device: the packets are originals, which go on their way as they came, and others' programs see them too. */
static __always_inline int watch(struct __sk_buff *skb, const int ingress)
{
	__u32 hook = ingress ? HOOK_INGRESS : HOOK_EGRESS, place = find_quick((__u64)hook << 48, skb->ifindex), zero = 0;
	struct source_key key = {.ifindex = skb->ifindex, .vlan = hook};
	struct walk walk = {.skb = skb};
	struct source *source;
	void *inner;

	if (place) {
		pick_single(skb, ingress, skb->vlan_present, place, 1);
		return TC_ACT_UNSPEC;
	}
	inner = bpf_map_lookup_elem(&sources, &zero);
	source = inner ? bpf_map_lookup_elem(inner, &key) : 0;
	if (!source) {
		unattributed(hook, skb->gso_segs ? skb->gso_segs : 1);
		return TC_ACT_UNSPEC;
	}
	walk.list = source;
	walk.c = begin(skb, ingress, skb->vlan_present, 0);
	if (walk.c)
		bpf_loop(source->count, visit_listed_original, &walk, 0);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int watch_ingress(struct __sk_buff *skb)
{
	return watch(skb, 1);
}

SEC("tc")
int watch_egress(struct __sk_buff *skb)
{
	return watch(skb, 0);
}

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pick);
} entrants SEC(".maps");

/* Which segments are all that is wanted of a super-packet, by its ticket. */
static __always_inline void read_cuts(const struct ticket *ticket, struct pick *c)
{
	__u32 kind = ticket->mode & (TICKET_FIRST | TICKET_GEOMETRIC), next = ticket->following & 0xffff;

	c->cuts = 0;
	if (kind == TICKET_FIRST && ticket->chosen <= MAX_CUTS) {
		c->cuts = ticket->chosen;
		c->cut[0] = 0;
		c->cut[1] = 1;
	} else if (kind == TICKET_GEOMETRIC) {
		c->cut[0] = ticket->chosen;
		c->cut[1] = next;
		if (next == TICKET_NO_MORE)
			c->cuts = 1;
		else if (ticket->following >> 16 == TICKET_NO_MORE)
			c->cuts = 2;
	}
}

#define STEERING_MULTIPLIER 0x9e3779b1u /* 2^32 by the golden ratio (Knuth, TAOCP 3, 6.4) */

/* A clone of an original on its way out of the near end, before the kernel takes it apart, or of the handover's. It comes from `watch`
 * or `relay` on this very CPU, which waits for it meanwhile: what that knows of the packet still holds. */
static __always_inline int enter_clone(struct __sk_buff *skb, struct ticket *ticket)
{
	__u32 zero = 0;
	struct pick *known = bpf_map_lookup_elem(&picks, &zero), *c = bpf_map_lookup_elem(&entrants, &zero);
	struct control *control = bpf_map_lookup_elem(&controls, &zero);
	struct cursor *cursor = bpf_map_lookup_elem(&cursors, &zero);
	int elsewhere;

	if (!known || !c || !control || !cursor)
		return TC_ACT_SHOT;
	elsewhere = ticket->mode & TICKET_HANDOVER;
	ticket->mode &= ~(TICKET_ORIGINAL | TICKET_HANDOVER);
	__builtin_memcpy(c, known, sizeof(*c));
	c->prepared = 0;
	c->pending = skb->mark;
	c->near_ifindex = control->near_ifindex;
	prepare(skb, c);
	read_cuts(ticket, c);
	if (c->cuts && control->cut_ifindex && can_cut(skb, c)) {
		c->pending_ifindex = control->cut_ifindex;
		choose_cut_queue(skb, control, c->ifindex);
		if (cut(skb, c) < 0) {
			known->ended = 1;
			return TC_ACT_SHOT;
		}
		if (c->pending_ifindex != c->near_ifindex) {
			skb->mark = c->pending;
			return bpf_redirect(c->pending_ifindex, 0);
		}
	}
	if (elsewhere) {
		write_ethertype(skb, ticket->ethertype); /* By which a super-packet will be taken apart. */
		/* By which receive packet steering chooses a CPU: not the flow's own, of which a sampler may have taken only the low ones. */
		bpf_set_hash(skb, ticket->flow_hash * STEERING_MULTIPLIER | 1);
		return TC_ACT_UNSPEC;
	}
	choose_queue(skb, cursor, control, c->segments);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int enter(struct __sk_buff *skb)
{
	__u32 mark = skb->mark, index = mark & 0x3fffff;
	struct ticket *ticket = bpf_map_lookup_elem(&tickets, &index);

	if (!mark || !ticket || ticket->mark != mark || !(ticket->mode & TICKET_ORIGINAL))
		return TC_ACT_UNSPEC;
	return enter_clone(skb, ticket);
}

static __always_inline int stale(void)
{
	__u32 zero = 0;
	struct node_counters *counters = bpf_map_lookup_elem(&node, &zero);

	if (counters)
		counters->stale++;
	return TC_ACT_SHOT;
}

/* On the CPU that copies are worked at: to the near end, where super-packets are taken apart. */
SEC("tc")
int cross(struct __sk_buff *skb)
{
	__u32 mark = skb->mark, index = mark & 0x3fffff, zero = 0;
	struct ticket *ticket = bpf_map_lookup_elem(&tickets, &index);
	struct control *control = bpf_map_lookup_elem(&controls, &zero);
	struct cursor *cursor = bpf_map_lookup_elem(&cursors, &zero);

	if (!control || !cursor)
		return TC_ACT_SHOT;
	if (!mark || !ticket || ticket->mark != mark || ticket->mode & TICKET_ORIGINAL)
		return stale();
	write_ethertype(skb, bpf_htons(MASKED_ETHERTYPE));
	choose_queue(skb, cursor, control, skb->gso_segs ? skb->gso_segs : 1);
	return bpf_redirect(control->near_ifindex, 0);
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
	if (j.ticket->mode & TICKET_ORIGINAL) { /* It has met no `enter`, and is no copy yet. */
		j.counters->dropped_not_ready++;
		return TC_ACT_SHOT;
	}
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
