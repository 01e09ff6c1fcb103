/* SPDX-License-Identifier: Apache-2.0 */
/* What rewriting and recovering programs and the agents both read and write. `pipeline/recover_layout.py` mirrors it. */
#ifndef VTAP_REWRITE_LAYOUT_H
#define VTAP_REWRITE_LAYOUT_H

#include <linux/types.h>

#define RECOVER_LAYOUT_VERSION 1

/* An id is a locally administered MAC address (IEEE 802c, "administratively assigned"): this octet, with the flags in its two
 * highest bits; three octets that stand for the node; two that stand for the meaning. */
#define REWRITE_ID 0x0a
#define REWRITE_ID_MASK 0x3f
#define REWRITE_ALIAS 0x0e76 /* how an edge's address begins, network order */
#define REWRITE_ALL_ONES_IP 0x80 /* the IPv4 header's checksum was 0xffff */
#define REWRITE_ALL_ONES_TRANSPORT 0x40 /* so was the transport header's */

#define REWRITE_WAYS 8
#define REWRITE_BUCKETS 512 /* together so many ids are in use at once at most: switches learn each of them */
#define REWRITE_IDLE 30 /* seconds after which an id may get another meaning */
#define REWRITE_FORGET 10 /* seconds after which an edge forgets a meaning that it isn't told again: far less */

#define REWRITE_ETHERTYPE 0x88b5 /* IEEE 802 local experimental */
#define REWRITE_MAGIC 0x76544150
#define REWRITE_VERSION 1
#define REWRITE_PROBE 1 /* from an agent: is there an edge? */
#define REWRITE_ANSWER 2 /* the same frame back, from the edge */
#define REWRITE_MEANING 3

/* What an id stands for. IPv4 addresses as ::ffff:a.b.c.d. */
struct meaning {
	__u8 destination[6];
	__u8 source[6];
	__u32 to; /* index of the destination at the source; 0 on the wire */
	__u32 address[4];
};

struct rewrite_entry {
	__u64 used; /* CLOCK_MONOTONIC, ns */
	__u64 told;
	struct meaning meaning;
};

/* A frame between agents and edges, padded to the least length that Ethernet has. */
struct rewrite_message {
	__u8 to[6];
	__u8 from[6];
	__be16 type;
	__be16 magic_high;
	__be16 magic_low;
	__u8 version;
	__u8 kind;
	__u8 family; /* 4 or 6 */
	__u8 zero;
	__u8 destination[6];
	__u8 source[6];
	__u8 address[16];
	__u8 pad[10];
};

/* An edge: the host-side device of a monitor, and the address that copies are sent to. A monitor has one for each IP address. */
struct edge_key {
	__u32 ifindex;
	__u8 alias[6];
	__u16 zero;
};

struct monitor {
	__u8 mac[6]; /* its own */
	__u16 zero;
};

/* Of one edge, on each CPU. */
struct recover_counters {
	__u64 recovered;
	__u64 unknown; /* an id that nobody has told the meaning of */
	__u64 refused; /* what no rewriting makes, or would reach the monitor as its own */
	__u64 told;
	__u64 probed;
};

struct heard {
	__u64 at; /* CLOCK_MONOTONIC, ns */
	__u32 family;
	__u32 zero;
	struct meaning meaning;
};

struct id_key {
	__u8 mac[6]; /* without flags */
	__u16 zero;
	__u32 ifindex; /* of the edge that was told */
};

#endif
