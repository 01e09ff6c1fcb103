/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VTAP_MAPS_H
#define VTAP_MAPS_H

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "layout.h"

#define FRAGMENT_BYTES 8192


/* What `send` decides about one copy is kept here and not on its stack: the verifier forgets it, which keeps the paths few. */
struct copy {
	__u32 kept; /* bytes of the frame with its tags */
	__u32 frame; /* the same before anything was cut */
	__u32 flags;
	__u32 payload; /* behind the outer IP header: tunnel, copy, trailer */
	__u32 sequence;
	__u32 parts; /* IP fragments, 1 = none */
	__u32 part; /* bytes of payload in each but the last */
	__u32 zero;
};

struct scratch {
	struct copy copy;
	__u64 header[MAX_HEADER * 2 / 8];
	__u8 tail[FRAGMENT_BYTES * 2]; /* twice: the verifier adds up the largest offset and the largest size */
};

struct cursor {
	__u32 tickets;
	__u32 queue;
	__u32 filled;
	__u32 zero[13];
};

/* Segments on their way out of a super-packet, an entry each. Both sizes are powers of two. */
#define MAX_CUTS 2
#define MAX_CUT_HEADERS 256
#define MAX_CUT_SEGMENT 16384

struct cut_scratch {
	__u64 headers[MAX_CUT_HEADERS / 8]; /* the super-packet's, in the first entry */
	__u8 payload[MAX_CUT_SEGMENT];
};

#define MAP(NAME, TYPE, MAX, KEY, VALUE, FLAGS)   \
	struct {                                  \
		__uint(type, BPF_MAP_TYPE_##TYPE); \
		__uint(max_entries, MAX);         \
		__uint(map_flags, FLAGS);         \
		__type(key, KEY);                 \
		__type(value, VALUE);             \
	} NAME SEC(".maps")

/* Whoever replaces the inner map replaces the whole content in one pointer write; readers keep what they found. */
#define SWAPPED(NAME, MAX, INNER)                          \
	struct {                                           \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);  \
		__uint(max_entries, MAX);                  \
		__type(key, __u32);                        \
		__array(values, INNER);                    \
	} NAME SEC(".maps")

struct inner_sources {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SLOTS * 2);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct source_key));
	__uint(value_size, sizeof(struct source));
};

struct inner_quick {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, QUICK_BUCKETS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct quick_bucket));
};

struct inner_floods {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SLOTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct flood_key));
	__uint(value_size, sizeof(struct flood));
};

struct inner_program {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct program));
};

struct inner_destination {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct destination));
};

SWAPPED(sources, 1, struct inner_sources);
SWAPPED(quicks, 1, struct inner_quick);
SWAPPED(floods, 1, struct inner_floods);
SWAPPED(programs, MAX_SLOTS, struct inner_program);
SWAPPED(destinations, MAX_SLOTS, struct inner_destination);
MAP(peers, HASH, 1 << 17, struct peer_key, __u8, BPF_F_NO_PREALLOC);
MAP(tunnels, HASH, MAX_TUNNELS, struct tunnel_key, __u8, BPF_F_NO_PREALLOC);
MAP(points, ARRAY, MAX_SLOTS, __u32, struct point, 0);
MAP(slots, ARRAY, MAX_SLOTS, __u32, struct shared, 0);
MAP(fragment_ids, ARRAY, MAX_SLOTS, __u32, __u32, 0);
MAP(picked, PERCPU_ARRAY, MAX_SLOTS, __u32, struct pick_counters, 0);
MAP(handled, PERCPU_ARRAY, MAX_SLOTS, __u32, struct send_counters, 0);
/* Devices that `watch` is at, noted by the agent: by ifindex, see hooks.py. */
MAP(hooks, HASH, MAX_SLOTS * 2, __u32, __u32, BPF_F_NO_PREALLOC);
MAP(ports, PERCPU_HASH, 256, __u32, struct port_counters, 0);
MAP(node, PERCPU_ARRAY, 1, __u32, struct node_counters, 0);
MAP(controls, ARRAY, 1, __u32, struct control, 0);
MAP(cursors, PERCPU_ARRAY, 1, __u32, struct cursor, 0);
MAP(scratches, PERCPU_ARRAY, 1, __u32, struct scratch, 0);
MAP(cut_scratches, PERCPU_ARRAY, MAX_CUTS, __u32, struct cut_scratch, 0);
/* Numbers of the inner maps, for the agent: before Linux 6.8 asking the outer map waits for a grace period each time. */
MAP(inners, ARRAY, 5 * MAX_SLOTS, __u32, __u32, 0);
MAP(tickets, ARRAY, 16384, __u32, struct ticket, 0); /* resized to 16384 a CPU before loading */

static __always_inline void *whole(void *outer, __u32 index)
{
	__u32 zero = 0;
	void *inner = bpf_map_lookup_elem(outer, &index);

	return inner ? bpf_map_lookup_elem(inner, &zero) : 0;
}

#endif
