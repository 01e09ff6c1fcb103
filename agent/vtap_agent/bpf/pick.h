/* SPDX-License-Identifier: Apache-2.0 */
/* Who is this copy's pod, does its tap want it, and if so: over to the normalising pair with a ticket. */
#ifndef VTAP_PICK_H
#define VTAP_PICK_H

#include "cut.h"
#include "filter.h"
#include "sample.h"

#define HEADROOM 128
#define SEGMENTS_A_VISIT 64 /* one NAPI poll takes that many from a queue */
#define MINIMAL_OUTER 64

static __always_inline __u32 hash_of(struct pick *c)
{
	if (!c->hashed) {
		c->hash = flow_hash(&c->packet);
		c->hashed = 1;
	}
	return c->hash;
}

__noinline int parse_packet(struct __sk_buff *skb, struct packet *p, __u32 ingress)
{
	int failed;

	if (!p)
		return -1;
	failed = ingress ? parse(skb, p, 1) : parse(skb, p, 0);
	if (failed)
		__builtin_memset(p, 0, sizeof(*p));
	return failed;
}

/* The VLAN that filters match is the first tag that the pod sees. */
static __always_inline void show_vlan(struct pick *c)
{
	__u64 vlan = 0;

	if (c->packet.tag_count > c->strip)
		vlan = tag_vid(c->packet.tags[c->strip & 1]);
	c->packet.meta = (c->packet.meta & ~(0xffffULL << META_VLAN_SHIFT)) | vlan << META_VLAN_SHIFT;
}

static __always_inline void parse_once(struct __sk_buff *skb, struct pick *c)
{
	if (c->parsed)
		return;
	c->parsed = 1;
	if (!skb->vlan_present && parse_plain((void *)(long)skb->data, (void *)(long)skb->data_end, &c->packet, c->ingress))
		return;
	c->broken = parse_packet(skb, &c->packet, c->ingress) != 0;
	if (c->packet.tag_count)
		show_vlan(c);
}

/* Wire packets in what the kernel handed over, and the bytes they have on the pod's wire. */
__noinline int measure(struct __sk_buff *skb, struct pick *c)
{
	__u32 size = skb->gso_size, headers, payload;

	if (!c)
		return 0;
	parse_once(skb, c);
	headers = c->packet.header_length + (c->packet.l3 - 14);
	payload = skb->len > headers ? skb->len - headers : 0;
	c->segments = skb->gso_segs;
	if (!c->segments)
		c->segments = size ? (payload + size - 1) / size : 1;
	if (!c->segments)
		c->segments = 1;
	c->bytes = payload + c->segments * (headers + (skb->vlan_present ? 4 : 0));
	return 0;
}

/* Once a packet, before its first copy leaves: tags and EtherType go into the ticket, which spares the far end GRO and VLAN
 * handling, and a super-packet gets room for the outer headers that all its segments inherit. */
static __noinline int normalise(struct __sk_buff *skb, struct pick *c)
{
	__u32 i;

	for (i = 0; i < MAX_TAGS; i++) {
		if (i >= c->packet.tag_count)
			break;
		bpf_skb_vlan_pop(skb);
	}
	if (skb->gso_size && c->packet.meta & META_IS_IP &&
	    !bpf_skb_adjust_room(skb, HEADROOM, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		bpf_skb_adjust_room(skb, -HEADROOM, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
	return 0;
}

static __always_inline void write_ethertype(struct __sk_buff *skb, __be16 type)
{
	void *data = (void *)(long)skb->data;

	if (data + 14 <= (void *)(long)skb->data_end)
		*(__be16 *)(data + 12) = type;
}

static __always_inline void prepare(struct __sk_buff *skb, struct pick *c)
{
	if (c->prepared)
		return;
	c->prepared = 1;
	if (c->packet.tag_count || skb->gso_size)
		normalise(skb, c);
	write_ethertype(skb, bpf_htons(MASKED_ETHERTYPE));
}

static __always_inline void choose_queue(struct __sk_buff *skb, struct cursor *cursor, const struct control *control, __u32 segments)
{
	__u32 cpu = bpf_get_smp_processor_id();

	if (cursor->filled + segments > SEGMENTS_A_VISIT) {
		cursor->queue++;
		cursor->filled = 0;
	}
	cursor->filled += segments;
	if (cpu < control->cpus)
		skb->queue_mapping = cpu * control->queues + (cursor->queue & (control->queues - 1)) + 1;
}

/* Queues by tap port, that of each keep their order. One visit takes 64 packets of a port, of two segments at most: a queue holds 256. */
static __always_inline void choose_cut_queue(struct __sk_buff *skb, const struct control *control, __u32 ifindex)
{
	__u32 cpu = bpf_get_smp_processor_id();

	if (cpu < control->cpus)
		skb->queue_mapping = cpu * CUT_QUEUES + (ifindex & (CUT_QUEUES - 1)) + 1;
}

static __always_inline struct ticket *take_ticket(struct cursor *cursor, const struct control *control, __u32 *mark)
{
	__u32 cpu = bpf_get_smp_processor_id(), number = ++cursor->tickets, index;

	index = cpu * control->tickets + (number & (control->tickets - 1));
	/* The high bits tell a ticket from its predecessors at the same place; never 0. */
	*mark = index | (number / control->tickets % 1023 + 1) << 22;
	return bpf_map_lookup_elem(&tickets, &index);
}

static __always_inline void hand_over_clone(struct __sk_buff *skb, struct pick *c, __u32 mark, __u32 ifindex)
{
	struct ticket *ticket;
	struct pick_counters *counters;
	__u32 index = mark & 0x3fffff, slot;

	skb->mark = mark;
	if (bpf_clone_redirect(skb, ifindex, 0) >= 0)
		return;
	ticket = bpf_map_lookup_elem(&tickets, &index);
	if (!ticket)
		return;
	slot = ticket->slot;
	counters = bpf_map_lookup_elem(&picked, &slot);
	if (counters) {
		counters->handed -= c->segments;
		counters->dropped_clone += c->segments;
	}
}

/* Where clones of originals go that are worked at elsewhere, 0 for those that stay. Only what is sure to cross in one piece goes: what
 * the device would have to take apart, such as super-packets of UFO, can't be told from other super-packets of UDP. */
static __always_inline __u32 way_over(const struct __sk_buff *skb, const struct pick *c, const struct control *control)
{
	return !skb->gso_size || c->packet.meta & META_HAS_TCP_FLAGS ? control->handover_ifindex : 0;
}

/* A clone of an original to CPUs set aside for copies. Where their queue has no room the device says so. */
static __always_inline void hand_over_elsewhere(struct __sk_buff *skb, struct pick *c, struct pick_counters *counters,
						struct cursor *cursor, __u32 mark, __u32 ifindex)
{
	long result;

	c->ended = 0;
	skb->mark = mark;
	result = bpf_clone_redirect(skb, ifindex, 0);
	if (!result || c->ended)
		return;
	cursor->tickets--; /* The next one may have it: else what is refused would use up those of the copies that wait. */
	counters->handed -= c->segments;
	if (result < 0)
		counters->dropped_clone += c->segments;
	else
		counters->dropped_handover += c->segments;
}

static __always_inline __u32 kept_bytes(const struct program *program, const struct pick *c)
{
	__u32 tags = c->packet.tag_count - (c->strip && c->packet.tag_count ? 1 : 0);
	__u32 headers = c->packet.header_length + tags * 4, cut = program->snap_length;

	if (program->flags & PROGRAM_HEADERS_ONLY && (!cut || headers < cut))
		cut = headers;
	return cut;
}

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pick);
} picks SEC(".maps");

/* Whether a packet is a copy of ours on its way, which a tapped router forwards: copying it would never end. */
__noinline int leads_to_us(struct pick *c)
{
	struct tunnel_key key = {};

	if (!c)
		return 0;
	key.protocol = c->packet.meta >> META_PROTOCOL_SHIFT & 0xff;
	if (key.protocol == 17 && !c->packet.fragment)
		key.port = c->ingress ? c->packet.pod_port : c->packet.peer_port;
	key.address[0] = c->ingress ? c->packet.pod[0] : c->packet.peer[0];
	key.address[1] = c->ingress ? c->packet.pod[1] : c->packet.peer[1];
	return bpf_map_lookup_elem(&tunnels, &key) != 0;
}

static __always_inline int is_our_tunnel(struct pick *c)
{
	__u8 protocol = c->packet.meta >> META_PROTOCOL_SHIFT;

	return (protocol == 17 || protocol == 47) && leads_to_us(c);
}

struct selection {
	__u32 entry;
	__u32 chosen;
	__u32 mode;
	__u32 following;
	__u32 cuts; /* how many segments are all that is wanted of a super-packet, 0 = more, or all */
	__u32 cut[MAX_CUTS]; /* and which */
};

/* Fills in a ticket; the copy leaves when the next tap point is selected, or with the packet itself if none is. Of an `original` a
 * clone leaves at once, as it is: `enter` makes of it what is done to a copy here. */
static __always_inline int hand_over(struct __sk_buff *skb, struct pick *c, struct pick_counters *counters, const struct program *program,
				const struct selection *selection, const int original)
{
	__u32 zero = 0, slot = selection->entry & 0xffff, mark, tag, cuts = 0, ifindex = 0, own_mark, i;
	struct control *control;
	struct cursor *cursor;
	struct ticket *ticket;
	struct point *point;

	if (!counters || !program)
		return 0;
	control = bpf_map_lookup_elem(&controls, &zero);
	cursor = bpf_map_lookup_elem(&cursors, &zero);
	point = bpf_map_lookup_elem(&points, &slot);
	if (!control || !cursor || !point)
		return 0;
	if (!c->clock)
		c->clock = bpf_ktime_get_ns();
	if (c->clock > control->lease_until) {
		counters->dropped_lease += c->segments;
		return 0;
	}
	parse_once(skb, c);
	if (c->broken) {
		counters->dropped_malformed += c->segments;
		return 0;
	}
	if (is_our_tunnel(c)) {
		counters->dropped_loop += c->segments;
		return 0;
	}
	if (!point->in_use || !control->near_ifindex) {
		counters->dropped_not_ready += c->segments;
		return 0;
	}
	c->near_ifindex = control->near_ifindex;
	if (!original) {
		prepare(skb, c);
		cuts = control->cut_ifindex && selection->cuts && can_cut(skb, c) ? selection->cuts : 0;
		if (c->pending && (cuts || !c->cuts)) {
			hand_over_clone(skb, c, c->pending, c->near_ifindex);
			c->pending = 0;
		}
		ifindex = cuts ? control->cut_ifindex : control->near_ifindex;
		if (cuts)
			choose_cut_queue(skb, control, skb->ifindex);
		else
			choose_queue(skb, cursor, control, c->segments);
	} else {
		ifindex = way_over(skb, c, control);
	}
	ticket = take_ticket(cursor, control, &mark);
	if (!ticket) {
		counters->dropped_not_ready += c->segments;
		return 0;
	}
	ticket->incarnation = point->incarnation;
	ticket->time = c->clock + control->tai_offset;
	ticket->flow_hash = hash_of(c);
	ticket->chosen = selection->chosen;
	ticket->segment = 0;
	ticket->cut = kept_bytes(program, c);
	ticket->slot = slot;
	ticket->program = selection->entry >> 16;
	ticket->mode = selection->mode | (program->cost_per_byte ? TICKET_LIMITED : 0) | (original ? TICKET_ORIGINAL : 0) |
		       (original && ifindex ? TICKET_HANDOVER : 0);
	ticket->ethertype = c->packet.ethertype;
	ticket->header_length = c->packet.header_length;
	tag = c->strip && c->packet.tag_count;
	ticket->tag_count = c->packet.tag_count - tag;
#pragma clang loop unroll(full)
	for (i = 0; i < MAX_TAGS; i++)
		ticket->tags[i] = c->packet.tags[(i + tag) & (MAX_TAGS - 1)];
	ticket->following = selection->following;
	ticket->mark = mark;
	counters->handed += c->segments;
	if (original) {
		own_mark = skb->mark;
		if (ifindex)
			hand_over_elsewhere(skb, c, counters, cursor, mark, ifindex);
		else
			hand_over_clone(skb, c, mark, c->near_ifindex);
		skb->mark = own_mark;
		return 0;
	}
	if (c->pending) { /* It is to be cut, which the others' copies have to be before. */
		hand_over_clone(skb, c, mark, c->near_ifindex);
		choose_cut_queue(skb, control, skb->ifindex);
		return 0;
	}
	c->pending = mark;
	c->pending_ifindex = ifindex;
	c->cuts = cuts;
	c->cut[0] = selection->cut[0];
	c->cut[1] = selection->cut[1];
	return 0;
}

/* Hits in a super-packet from the first on, as far as a ticket has room for them; `send` draws what follows the third. */
static __always_inline void draw_hits(const struct program *program, struct pick_counters *counters, __u32 n, struct selection *selection)
{
	__u64 at = counters->skip;

	selection->mode = TICKET_GEOMETRIC;
	selection->chosen = selection->cut[0] = at;
	at += 1 + (__u64)draw_skip(program);
	if (at >= n) {
		selection->cuts = 1;
		selection->following = TICKET_NO_MORE;
	} else {
		selection->following = selection->cut[1] = at;
		at += 1 + (__u64)draw_skip(program);
		if (at >= n)
			selection->cuts = 2;
		selection->following |= (at < n ? (__u32)at : TICKET_NO_MORE) << 16;
	}
	if (at < n)
		counters->skip = draw_skip(program);
	else
		counters->skip = at - n > 0xffffffff ? 0xffffffff : at - n;
}

static __always_inline void take_first(__u32 hits, __u32 n, struct selection *selection)
{
	selection->mode = hits < n ? TICKET_FIRST : TICKET_WHOLE;
	selection->chosen = hits;
	if (hits >= n || hits > MAX_CUTS)
		return;
	selection->cuts = hits;
	selection->cut[0] = 0;
	selection->cut[1] = 1;
}

static __always_inline int sampled(const struct program *program, struct pick *c, struct pick_counters *counters, __u32 entry,
				   struct selection *selection)
{
	__u32 slot = entry & 0xffff, n = c->segments, hits;
	struct shared *shared;

	selection->entry = entry;
	selection->chosen = 0;
	selection->mode = TICKET_WHOLE;
	selection->cuts = 0;
	selection->following = 0;
	if (program->sampling == SAMPLE_ONE_IN) {
		if (counters->skip_drawn != drawn_by(program)) {
			counters->skip_drawn = drawn_by(program);
			counters->skip = draw_skip(program);
		}
		if (counters->skip >= n) {
			counters->skip -= n;
			counters->unsampled += n;
			return 0;
		}
		if (n > 1)
			draw_hits(program, counters, n, selection);
		else
			counters->skip = draw_skip(program);
	} else if (program->sampling == SAMPLE_FLOWS) {
		if (hash_of(c) >= program->flow_threshold) {
			counters->unsampled += n;
			return 0;
		}
	} else if (program->sampling == SAMPLE_PER_INTERVAL) {
		shared = bpf_map_lookup_elem(&slots, &slot);
		if (!shared)
			return 0;
		hits = take_from_window(shared, program, n);
		if (!hits) {
			counters->unsampled += n;
			return 0;
		}
		if (n > 1)
			take_first(hits, n, selection);
	}
	return 1;
}

/* Over the rate already: don't even clone. A packet that the sampler takes apart is left to `send`, which charges exactly. */
static __always_inline int over_rate(const struct program *program, struct pick_counters *counters, const struct pick *c,
				     const struct selection *selection)
{
	__u32 slot = selection->entry & 0xffff;
	struct shared *shared;

	if (!program->cost_per_byte || selection->mode != TICKET_WHOLE)
		return 0;
	shared = bpf_map_lookup_elem(&slots, &slot);
	if (!shared || bucket_conforms(shared, program, bucket_clock(), MINIMAL_OUTER))
		return 0;
	counters->limited += c->segments;
	return 1;
}

/* What the filter lets pass: sampler, limit, and over to the pair. */
static __always_inline int admitted(struct __sk_buff *skb, struct pick *c, struct pick_counters *counters, struct program *program,
				    __u32 entry, const int original)
{
	struct selection selection;

	if (program->sampling == SAMPLE_FLOWS) {
		parse_once(skb, c);
		if (c->broken) {
			counters->dropped_malformed += c->segments;
			return 0;
		}
	}
	if (!sampled(program, c, counters, entry, &selection) || over_rate(program, counters, c, &selection))
		return 0;
	return hand_over(skb, c, counters, program, &selection, original);
}

__noinline int admit(struct __sk_buff *skb, struct pick *c, struct pick_counters *counters, struct program *program, __u32 entry)
{
	if (!c || !counters || !program)
		return 0;
	return admitted(skb, c, counters, program, entry, 0);
}

/* A program that writes into packets has the kernel make each of them writable first, which originals are to be spared: hence apart. */
__noinline int admit_original(struct __sk_buff *skb, struct pick *c, struct pick_counters *counters, struct program *program,
			      __u32 entry)
{
	if (!c || !counters || !program)
		return 0;
	return admitted(skb, c, counters, program, entry, 1);
}

/* One tap point's whole way through filter and sampler. */
static __always_inline int judged(struct __sk_buff *skb, struct pick *c, struct pick_counters *counters, struct program *program,
				  __u32 entry, const int original)
{
	int include;

	counters->seen += c->segments;
	counters->seen_bytes += c->strip & c->tagged ? c->bytes - 4 * c->segments : c->bytes;
	if (program->rule_count)
		parse_once(skb, c);
	if (c->broken) {
		counters->dropped_malformed += c->segments;
		return 0;
	}
	include = program->rule_count ? decide(program, &c->packet) : program->flags & PROGRAM_INCLUDE;
	if (!include) {
		counters->excluded += c->segments;
		return 0;
	}
	return original ? admit_original(skb, c, counters, program, entry) : admit(skb, c, counters, program, entry);
}

__noinline int judge(struct __sk_buff *skb, struct pick *c, struct pick_counters *counters, struct program *program, __u32 entry)
{
	if (!c || !counters || !program)
		return 0;
	return judged(skb, c, counters, program, entry, 0);
}

__noinline int judge_original(struct __sk_buff *skb, struct pick *c, struct pick_counters *counters, struct program *program,
			      __u32 entry)
{
	if (!c || !counters || !program)
		return 0;
	return judged(skb, c, counters, program, entry, 1);
}

static __always_inline int visited(struct __sk_buff *skb, struct pick *c, __u32 entry, const int original)
{
	__u32 slot = entry & 0xffff;
	struct pick_counters *counters = bpf_map_lookup_elem(&picked, &slot);
	struct program *program = whole(&programs, entry >> 16);

	if (!counters)
		return 0;
	if (program)
		return original ? judge_original(skb, c, counters, program, entry) : judge(skb, c, counters, program, entry);
	counters->seen += c->segments;
	counters->seen_bytes += c->bytes;
	counters->dropped_not_ready += c->segments;
	return 0;
}

static __noinline int visit(struct __sk_buff *skb, struct pick *c, __u32 entry)
{
	return visited(skb, c, entry, 0);
}

static __noinline int visit_original(struct __sk_buff *skb, struct pick *c, __u32 entry)
{
	return visited(skb, c, entry, 1);
}

/* The segments that were cut out are all that is left to hand over. */
static __always_inline struct pick_counters *account_cut(struct pick *c)
{
	__u32 index = c->pending & 0x3fffff, slot, without = c->segments - c->cuts;
	struct ticket *ticket = bpf_map_lookup_elem(&tickets, &index);
	struct pick_counters *counters;

	if (!ticket)
		return 0;
	slot = ticket->slot;
	counters = bpf_map_lookup_elem(&picked, &slot);
	if (!counters)
		return 0;
	ticket->mode = TICKET_WHOLE | TICKET_CUT | (ticket->mode & TICKET_LIMITED);
	counters->handed -= without;
	counters->unsampled += without;
	c->segments = 1;
	return counters;
}

/* Hands over all but the last of the segments wanted, which the packet then is; without memory for that it stays whole, and `send`
 * drops what isn't wanted. -1: nothing is left to hand over. */
__noinline int cut(struct __sk_buff *skb, struct pick *c)
{
	__u32 zero = 0, one = 1, size = skb->gso_size, payload, target, failed;
	struct cut_scratch *scratch = bpf_map_lookup_elem(&cut_scratches, &zero), *other = bpf_map_lookup_elem(&cut_scratches, &one);
	struct pick_counters *counters;
	struct segment first, last;
	struct origin origin;

	if (!c || !scratch || !other || skb->len <= c->packet.header_length)
		return 0;
	payload = skb->len - c->packet.header_length;
	target = c->pending_ifindex;
	c->pending_ifindex = c->near_ifindex;
	find_segment(&first, c->cut[0], size, payload);
	find_segment(&last, c->cut[1], size, payload);
	if (keep_payload(skb, c, &first, scratch->payload) || (c->cuts > 1 && keep_payload(skb, c, &last, other->payload)) ||
	    bpf_skb_change_tail(skb, c->packet.header_length + first.length, 0))
		return 0;
	c->pending_ifindex = target;
	counters = account_cut(c);
	if (!counters)
		return -1;
	read_origin((__u8 *)scratch->headers, (c->packet.meta & 0xff) == 6, &origin);
	failed = become(skb, c, scratch, &origin, &first, scratch->payload) ? c->cuts : 0;
	if (!failed && c->cuts > 1) {
		hand_over_clone(skb, c, c->pending, c->pending_ifindex);
		failed = become(skb, c, scratch, &origin, &last, other->payload) ? 1 : 0;
	}
	counters->handed -= failed;
	counters->dropped_clone += failed;
	return failed ? -1 : 0;
}

struct walk {
	struct __sk_buff *skb;
	struct pick *c;
	void *list;
	__u8 sender[8];
};

static long visit_listed(__u32 i, struct walk *walk)
{
	struct source *source = walk->list;

	if (i < MAX_POINTS)
		visit(walk->skb, walk->c, source->entries[i]);
	return 0;
}

static long visit_listed_original(__u32 i, struct walk *walk)
{
	struct source *source = walk->list;

	if (i < MAX_POINTS)
		visit_original(walk->skb, walk->c, source->entries[i]);
	return 0;
}

static __always_inline long flooded(__u32 i, struct walk *walk, const int original)
{
	struct flood *flood = walk->list;
	struct flood_entry *receiver;

	if (i >= MAX_FLOOD)
		return 1;
	receiver = &flood->entries[i];
	if (*(__u32 *)receiver->mac != *(__u32 *)walk->sender || *(__u16 *)(receiver->mac + 4) != *(__u16 *)(walk->sender + 4)) {
		walk->c->strip = receiver->flags & SOURCE_STRIP;
		if (walk->c->parsed)
			show_vlan(walk->c);
		if (original)
			visit_original(walk->skb, walk->c, receiver->entry);
		else
			visit(walk->skb, walk->c, receiver->entry);
	}
	return 0;
}

static long visit_flooded(__u32 i, struct walk *walk)
{
	return flooded(i, walk, 0);
}

static long visit_flooded_original(__u32 i, struct walk *walk)
{
	return flooded(i, walk, 1);
}

static __always_inline int unattributed(__u32 ifindex, __u32 segments)
{
	struct port_counters *port = bpf_map_lookup_elem(&ports, &ifindex);

	if (port)
		port->unattributed += segments;
	return TC_ACT_SHOT;
}

static __always_inline int finish(struct __sk_buff *skb, struct pick *c)
{
	if (!c->pending)
		return TC_ACT_SHOT;
	if (c->cuts && cut(skb, c) < 0)
		return TC_ACT_SHOT;
	skb->mark = c->pending;
	return bpf_redirect(c->pending_ifindex, 0);
}

static __always_inline void start(struct __sk_buff *skb, struct pick *c, int ingress, int tagged, int strip)
{
	c->pending = 0;
	c->cuts = 0;
	c->clock = 0;
	c->parsed = 0;
	c->hashed = 0;
	c->prepared = 0;
	c->broken = 0;
	c->ingress = ingress;
	c->strip = strip;
	c->segments = 1;
	c->tagged = tagged;
	c->ifindex = skb->ifindex;
	c->bytes = skb->len + (skb->vlan_present ? 4 : 0);
}

/* Work memory of this CPU: nothing to clear, and the verifier knows nothing of its content, which keeps it quick. */
static __always_inline struct pick *begin(struct __sk_buff *skb, int ingress, int tagged, int strip)
{
	__u32 zero = 0;
	struct pick *c = bpf_map_lookup_elem(&picks, &zero);

	if (!c)
		return 0;
	start(skb, c, ingress, tagged, strip);
	if (skb->gso_size)
		measure(skb, c);
	return c;
}

#endif
