/* SPDX-License-Identifier: Apache-2.0 */
/* `send` without a tunnel: an id for what is overwritten, its meaning told first, then the exchange. */
#ifndef VTAP_REWRITE_SEND_H
#define VTAP_REWRITE_SEND_H

#include "maps.h"
#include "rewrite.h"

#define REWRITTEN 0
#define NOT_REWRITABLE 1
#define NO_ID_LEFT 2
#define REWRITE_FAILED 3

#define REWRITE_DUE 0x10000
#define REWRITE_FULL -1

struct rewrite_bucket {
	struct bpf_spin_lock lock;
	__u32 zero;
	struct rewrite_entry entries[REWRITE_WAYS];
};

/* The stack is too small for it. */
struct rewrite_work {
	struct meaning meaning;
	__u32 monitor[4];
	__u8 original[sizeof(struct rewrite_message)];
	struct rewrite_message message;
};

MAP(rewrite_ids, ARRAY, REWRITE_BUCKETS, __u32, struct rewrite_bucket, 0);
MAP(rewrite_works, PERCPU_ARRAY, 1, __u32, struct rewrite_work, 0);

static __always_inline int same_meaning(const struct meaning *a, const struct meaning *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3];
}

static __always_inline __u64 meaning_hash(const struct meaning *m)
{
	const __u64 *words = (const __u64 *)m;
	__u64 mixed = 0;
	__u32 i;

#pragma clang loop unroll(full)
	for (i = 0; i < 4; i++) {
		mixed = (mixed ^ words[i]) * 0x9e3779b97f4a7c15ULL;
		mixed ^= mixed >> 32;
	}
	return mixed * 0x9e3779b97f4a7c15ULL;
}

/* The id that a meaning has in a bucket, with REWRITE_DUE where it is to be told again; where it has none and `give`, one that no
 * edge can remember by its old meaning any more. Less than zero where there is none: -1 - free places. */
__noinline int id_in(__u32 index, const struct meaning *wanted, int give)
{
	struct rewrite_bucket *bucket = bpf_map_lookup_elem(&rewrite_ids, &index);
	__u32 found = REWRITE_WAYS, spare = REWRITE_WAYS, i;
	__u64 now = bpf_ktime_get_ns();
	int free = 0, due = 0;

	if (!bucket || !wanted)
		return REWRITE_FULL;
	bpf_spin_lock(&bucket->lock);
#pragma clang loop unroll(full)
	for (i = 0; i < REWRITE_WAYS; i++) {
		struct rewrite_entry *entry = &bucket->entries[i];

		if (entry->used && same_meaning(&entry->meaning, wanted))
			found = i;
		if (!entry->used || since(entry->used, now) > REWRITE_IDLE * REWRITE_SECOND) {
			spare = i;
			free++;
		}
	}
	if (found == REWRITE_WAYS && give && spare < REWRITE_WAYS) {
		found = spare;
		bucket->entries[found].meaning = *wanted;
		bucket->entries[found].told = 0;
	}
	if (found < REWRITE_WAYS) {
		bucket->entries[found].used = now;
		if (since(bucket->entries[found].told, now) > REWRITE_SECOND) {
			bucket->entries[found].told = now;
			due = REWRITE_DUE;
		}
	}
	bpf_spin_unlock(&bucket->lock);
	return found < REWRITE_WAYS ? (int)(index * REWRITE_WAYS + found) | due : -1 - free;
}

/* The id that stands for a meaning, as `id_in` has it; REWRITE_FULL where all its places are taken. They are in a bucket of each half;
 * a new one is in the emptier of these, and in the first half's where they are alike, so that few ids are left when the first bucket
 * is full (Vöcking, "How Asymmetry Helps Load Balancing", J. ACM 50(4), 2003). Two CPUs that meet a meaning at once may give it an id
 * each: no harm, as either brings the same back. */
static __always_inline int find_id(const struct meaning *wanted)
{
	__u64 hash = meaning_hash(wanted);
	__u32 first = hash >> 56, second = REWRITE_BUCKETS / 2 + (hash >> 48 & 255);
	int in_first, in_second, given;

	in_first = id_in(first, wanted, 0);
	if (in_first >= 0)
		return in_first;
	in_second = id_in(second, wanted, 0);
	if (in_second >= 0 || (in_first == REWRITE_FULL && in_second == REWRITE_FULL))
		return in_second;
	given = id_in(in_first <= in_second ? first : second, wanted, 1);
	return given >= 0 ? given : id_in(in_first <= in_second ? second : first, wanted, 1);
}

_Static_assert(REWRITE_BUCKETS / 2 == 1 << 8, "find_id takes eight bits for each half");

/* Its meaning was not told after all. */
static __always_inline void untold(__u32 id)
{
	__u32 index = id / REWRITE_WAYS;
	struct rewrite_bucket *bucket = bpf_map_lookup_elem(&rewrite_ids, &index);

	if (bucket)
		bucket->entries[id % REWRITE_WAYS].told = 0;
}

static __always_inline void write_message(struct rewrite_work *work, int v6)
{
	struct rewrite_message *m = &work->message;

	m->type = bpf_htons(REWRITE_ETHERTYPE);
	m->magic_high = bpf_htons(REWRITE_MAGIC >> 16);
	m->magic_low = bpf_htons(REWRITE_MAGIC & 0xffff);
	m->version = REWRITE_VERSION;
	m->kind = REWRITE_MEANING;
	m->family = v6 ? 6 : 4;
	m->zero = 0;
	__builtin_memcpy(m->destination, work->meaning.destination, 6);
	__builtin_memcpy(m->source, work->meaning.source, 6);
	__builtin_memcpy(m->address, work->meaning.address, 16);
	__builtin_memset(m->pad, 0, sizeof(m->pad));
}

/* Tells what the id means in a frame of its own: the copy lends its buffer. */
static __always_inline int tell(struct __sk_buff *skb, struct rewrite_work *work, __u32 ifindex, int v6)
{
	__u32 length = skb->len;
	const __u32 size = sizeof(struct rewrite_message);

	write_message(work, v6);
	if (length < size && bpf_skb_change_tail(skb, size, 0))
		return -1;
	if (bpf_skb_load_bytes(skb, 0, work->original, size) || bpf_skb_store_bytes(skb, 0, &work->message, size, 0) ||
	    bpf_clone_redirect(skb, ifindex, 0) < 0 || bpf_skb_store_bytes(skb, 0, work->original, size, 0))
		return -1;
	return length < size && bpf_skb_change_tail(skb, length, 0) ? -1 : 0;
}

/* What an id has to bring back, from the frame. -1 where rewriting has no form for it: not IP of the monitor's family, tagged, cut;
 * to many, which the monitor would take for its own once recovered; to or from the monitor itself. */
static __always_inline int read_meaning(struct __sk_buff *skb, const struct destination *d, const struct ticket *t,
					struct rewrite_work *work, __u32 number, int v6)
{
	const __u8 *address = (const __u8 *)d->header + IP_OFFSET + (v6 ? 24 : 16);
	struct meaning *m = &work->meaning;

	if (t->tag_count || t->ethertype != bpf_htons(v6 ? 0x86dd : 0x0800) || (t->cut && t->cut < skb->len))
		return -1;
	if (bpf_skb_load_bytes(skb, 0, m, 12) || m->destination[0] & 1 || m->source[0] & 1)
		return -1;
	/* A copy that lost its way: flooded to a tapped pod, because no switch knows its edge any more. */
	if (m->destination[0] == REWRITE_ALIAS >> 8 && m->destination[1] == (REWRITE_ALIAS & 0xff) &&
	    (m->source[0] & REWRITE_ID_MASK) == REWRITE_ID)
		return -1;
	m->to = number;
	if (v6) {
		__builtin_memcpy(work->monitor, address, 16);
		if (bpf_skb_load_bytes(skb, IP_OFFSET + 24, m->address, 16))
			return -1;
	} else {
		work->monitor[0] = work->monitor[1] = m->address[0] = m->address[1] = 0;
		work->monitor[2] = m->address[2] = bpf_htonl(0xffff);
		__builtin_memcpy(work->monitor + 3, address, 4);
		if (bpf_skb_load_bytes(skb, IP_OFFSET + 16, m->address + 3, 4))
			return -1;
	}
	if (work->monitor[0] == m->address[0] && work->monitor[1] == m->address[1] && work->monitor[2] == m->address[2] &&
	    work->monitor[3] == m->address[3])
		return -1;
	return 0;
}

/* One of REWRITTEN and its like. The destination's header holds the monitor's addresses and the first octets of the node's ids. */
__noinline int rewrite(struct __sk_buff *skb, struct destination *d, struct ticket *t, __u32 number)
{
	__u32 zero = 0;
	struct rewrite_work *work = bpf_map_lookup_elem(&rewrite_works, &zero);
	__be16 type;
	int v6, id, flags;

	if (!d || !t || !work)
		return REWRITE_FAILED;
	v6 = d->flags & DESTINATION_IPV6;
	if (read_meaning(skb, d, t, work, number, v6))
		return NOT_REWRITABLE;
	id = find_id(&work->meaning);
	if (id < 0)
		return NO_ID_LEFT;
	__builtin_memcpy(&work->message, d->header, 10); /* the monitor's MAC address, the id's first octets */
	work->message.from[4] = id >> 8;
	work->message.from[5] = id;
	type = t->ethertype;
	if (bpf_skb_store_bytes(skb, 12, &type, 2, 0))
		return REWRITE_FAILED;
	if (id & REWRITE_DUE && tell(skb, work, d->ifindex, v6)) {
		untold(id & ~REWRITE_DUE);
		return REWRITE_FAILED;
	}
	flags = v6 ? exchange(skb, 1, work->meaning.address, work->monitor) : exchange(skb, 0, work->meaning.address, work->monitor);
	if (flags < 0)
		return NOT_REWRITABLE;
	work->message.from[0] |= flags;
	return bpf_skb_store_bytes(skb, 0, &work->message, 12, 0) ? REWRITE_FAILED : REWRITTEN;
}

#endif
