/* SPDX-License-Identifier: Apache-2.0 */
/* What the eBPF programs and the agent both read and write. `pipeline/layout.py` mirrors it; a test compares the two. */
#ifndef VTAP_LAYOUT_H
#define VTAP_LAYOUT_H

#include <linux/types.h>

#define LAYOUT_VERSION 2 /* part of every pin's name: raise it with any change below but the use of a spare field */

#define MAX_SLOTS 4096
#define MAX_MATCHES 128
#define MAX_POINTS 128
#define MAX_FLOOD 1024
#define MAX_TAGS 4
#define MAX_HEADER 128
#define ANY_VLAN 0xffff
#define MASKED_ETHERTYPE 0x88b5 /* IEEE 802 local experimental: no GRO handler wants it */

/* Which source a copy belongs to. `vlan` is the VID of the outermost tag, 0 without one. */
struct source_key {
	__u32 ifindex;
	__u16 vlan;
	__u8 mac[6];
};

/* In place of a VLAN, with a MAC address of zeros: all that passes the device in that direction, as the pod sees it. */
#define HOOK_INGRESS 0xfffe
#define HOOK_EGRESS 0xfffd

#define SOURCE_STRIP 1 /* the outermost tag is the bridge's, the pod never saw it */

/* entries: slot in the low half, index of its program in the high half. */
struct source {
	__u16 count;
	__u16 flags;
	__u32 entries[MAX_POINTS];
};

/* The quick way to a source that one tap wants: a table of two-entry buckets, swapped whole. What finds no room in its bucket, and
 * what several taps want, is in the hash map only. `place` is 0 in an empty entry, else QUICK_USED, the flags and the entry. */
#define QUICK_BUCKETS 8192
#define QUICK_USED (1u << 31)
#define QUICK_STRIP (1u << 30)
#define QUICK_PROGRAM_SHIFT 12
#define QUICK_MULTIPLIER 0x9e3779b97f4a7c15ULL

struct quick {
	__u64 mac_vlan; /* the MAC address as on the wire in the low 48 bits of a little-endian word, the VLAN above */
	__u32 ifindex;
	__u32 place;
};

struct quick_bucket {
	struct quick entries[2];
};

struct flood_key {
	__u32 ifindex;
	__u16 vlan;
	__u16 zero;
};

struct flood_entry {
	__u8 mac[6];
	__u16 flags;
	__u32 entry;
};

struct flood {
	__u32 count;
	__u32 zero;
	struct flood_entry entries[MAX_FLOOD];
};

/* A packet as one word, so that a rule is a masked comparison. */
#define META_VERSION_SHIFT 0
#define META_PROTOCOL_SHIFT 8
#define META_TCP_FLAGS_SHIFT 16
#define META_VLAN_SHIFT 32
#define META_IS_IP (1ULL << 24)
#define META_HAS_PORTS (1ULL << 25)
#define META_HAS_TCP_FLAGS (1ULL << 26)

/* Addresses are 16 bytes as on the wire, IPv4 as ::ffff:a.b.c.d; ports are in host order. */
struct rule {
	__u64 meta;
	__u64 meta_mask;
	__u64 peer[2];
	__u64 peer_mask[2];
	__u16 pod_first;
	__u16 pod_last;
	__u16 peer_first;
	__u16 peer_last;
	__u32 peer_set;
	__u16 include;
	__u16 uses_peer_set;
};

#define SAMPLE_ALL 0
#define SAMPLE_PER_INTERVAL 1
#define SAMPLE_ONE_IN 2
#define SAMPLE_FLOWS 3

#define PROGRAM_INCLUDE 1 /* the default action */
#define PROGRAM_HEADERS_ONLY 2

struct program {
	__u8 name[16]; /* digest of the tap's name: how a restarted agent knows it again */
	__u16 flags;
	__u16 sampling;
	__u32 rule_count;
	__u64 interval_ns;
	__u64 flow_threshold;
	__u32 packets;
	__u32 skip_scale;	   /* ONE_IN: skip = -log2(U) * skip_scale >> (16 + skip_shift) */
	__u32 skip_shift;
	__u32 snap_length;
	__u64 cost_per_byte; /* 1/65536 of a token-bucket unit; a unit is 1/64 ns; 0 = no limit */
	__u64 burst;	     /* in units */
	struct rule rules[MAX_MATCHES];
};

struct peer_key {
	__u32 set;
	__u32 version;
	__u64 address[2];
};

/* Where our own tunnels lead: what is on its way there is never copied. `port` is 0 for GRE, and for any fragment over UDP. */
#define MAX_TUNNELS (2 * MAX_SLOTS + 2)

struct tunnel_key {
	__u64 address[2];
	__u16 protocol;
	__u16 port;
	__u32 zero;
};

#define POINT_EGRESS 1

struct point {
	__u32 in_use;
	__u32 incarnation;
	__u32 key;
	__u32 destination;
	__u32 flags;
	__u32 zero;
	__u64 incarnation_full;
	__u8 name[16]; /* digest of the tap point's name */
};

#define ENCAP_GRE_UDP 0
#define ENCAP_GRE 1
#define ENCAP_VXLAN 2
#define ENCAP_ERSPAN2 3
#define ENCAP_REWRITE 4 /* no header of ours: `header` holds the monitor's addresses, see rewrite_layout.h */

#define DESTINATION_TRAILER 1
#define DESTINATION_FRAGMENT 2
#define DESTINATION_FIXED_ID 4
#define DESTINATION_IPV6 8

/* `header` is everything before the copy, Ethernet first, with zeros where each packet's own values go. IPv6 leaves no room for
 * the fragment header in it: `send` opens the gap. */
struct destination {
	__u8 name[16];
	__u32 state;
	__u32 ifindex;
	__u32 mtu;
	__u32 fixed_id;
	__u16 encapsulation;
	__u16 flags;
	__u16 header_length;
	__u16 ip_length;
	__u32 checksum; /* of the IPv4 header with length, id and fragment fields zero: not folded, not complemented */
	__u32 zero;
	__u64 header[MAX_HEADER / 8]; /* words, so that copying takes words */
};

/* Written by `pick` on its CPU, all in wire packets but the bytes. */
struct pick_counters {
	__u64 seen;
	__u64 seen_bytes;
	__u64 excluded;
	__u64 unsampled;
	__u64 limited;
	__u64 handed;
	__u64 dropped_lease;
	__u64 dropped_clone;
	__u64 dropped_not_ready;
	__u64 dropped_malformed;
	__u32 skip; /* ONE_IN: wire packets still to pass over on this CPU */
	__u32 skip_drawn; /* by which chance it was drawn: a changed program draws anew */
	__u64 dropped_loop;
	__u64 dropped_handover;
	__u64 zero[3];
};

struct send_counters {
	__u64 arrived;
	__u64 unsampled;
	__u64 limited;
	__u64 sent;
	__u64 sent_bytes;
	__u64 truncated;
	__u64 dropped_clone;
	__u64 dropped_oversize;
	__u64 dropped_no_route;
	__u64 dropped_no_neighbour;
	__u64 dropped_redirect;
	__u64 dropped_malformed;
	__u64 dropped_not_ready;
	__u64 dropped_not_rewritable;
	__u64 dropped_no_id;
	__u64 zero[1];
};

/* One a slot, shared by all CPUs. */
struct shared {
	__u64 window; /* PER_INTERVAL: number of the window << 24 | packets taken in it */
	__u64 busy_until; /* token bucket as GCRA: theoretical arrival time, in 1/64 ns */
	__u32 sequence;
	__u32 zero[11];
};

struct port_counters {
	__u64 unattributed;
};

struct node_counters {
	__u64 stale; /* arrived at `send` without a ticket that is still its own */
};

struct control {
	__u64 lease_until; /* CLOCK_MONOTONIC, ns */
	__u64 tai_offset; /* CLOCK_TAI - CLOCK_MONOTONIC: moves only when the clock is set */
	__u32 near_ifindex;
	__u32 queues; /* of the pair, for each CPU */
	__u32 tickets; /* for each CPU, a power of two */
	__u32 cpus;
	__u32 cut_ifindex; /* where cut segments go, 0 = nothing is to be cut */
	__u32 handover_ifindex; /* where clones go that other CPUs are to work at, 0 = this CPU works at them */
};

#define CUT_QUEUES 4 /* of the pair for cut segments, for each CPU */

#define TICKET_WHOLE 0
#define TICKET_FIRST 1	   /* the first `chosen` segments */
#define TICKET_GEOMETRIC 2 /* segment `chosen`, then `following`, then as the sampler draws */
#define TICKET_LIMITED 4
#define TICKET_CUT 8 /* cut out of a super-packet by `pick` */
#define TICKET_ORIGINAL 16 /* on a clone of an original, until `enter` has seen it */
#define TICKET_HANDOVER 32 /* beside that: it goes to CPUs set aside for copies */
#define TICKET_NO_MORE 0xffff /* in place of a segment that follows */

/* What `pick` knows of a packet and `send` needs for each of its segments. */
struct ticket {
	__u32 mark;
	__u32 incarnation;
	__u64 time; /* CLOCK_TAI, ns */
	__u32 flow_hash;
	__u32 chosen;
	__u32 segment;
	__u32 cut; /* bytes to keep of the frame with its tags, 0 = all */
	__u16 slot;
	__u16 program;
	__u16 mode;
	__u16 tag_count;
	__u16 ethertype; /* network order */
	__u16 header_length; /* Ethernet to transport header, without tags */
	__u32 tags[MAX_TAGS]; /* as on the wire */
	__u32 following; /* GEOMETRIC: the two segments behind `chosen`, the next in the low half; 0 = not drawn yet */
};

#define TRAILER_LENGTH 20
#define TRAILER_CUT 1
#define TRAILER_OVERSIZE 2
#define TRAILER_VERSION 1
#define TRAILER_MAGIC 0x76544150

#endif
