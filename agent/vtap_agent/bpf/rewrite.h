/* SPDX-License-Identifier: Apache-2.0 */
/* Copies without a tunnel: what `send` at the source and `recover` at the monitor's edge both know.
 *
 * A copy's destination MAC and IP addresses become the monitor's, its source MAC address an id that stands for what was there
 * before. What an id means is told by a frame of its own, ahead of the first copy and once a second after that. */
#ifndef VTAP_REWRITE_H
#define VTAP_REWRITE_H

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "rewrite_layout.h"

#define REWRITE_SECOND 1000000000LL /* nanoseconds */
#define REWRITE_EXTENSIONS 6
#define IP_OFFSET 14

/* Nanoseconds; below zero where another CPU was there after `now` had been read. */
static __always_inline __s64 since(__u64 then, __u64 now)
{
	return now - then;
}

/* Where the checksum of the transport header is that covers the destination address; 0 where there is none. */
struct transport_sum {
	__u32 offset;
	__u32 flags; /* of bpf_l4_csum_replace */
};

static __always_inline void sum_of(__u8 protocol, __u32 at, struct transport_sum *sum)
{
	sum->offset = 0;
	sum->flags = BPF_F_PSEUDO_HDR;
	if (protocol == 6) {
		sum->offset = at + 16;
	} else if (protocol == 17) {
		sum->offset = at + 6;
		sum->flags |= BPF_F_MARK_MANGLED_0; /* 0 says that there is none (RFC 768) and stays so */
	} else if (protocol == 33 || protocol == 136) { /* DCCP, UDP-Lite */
		sum->offset = at + 6;
	} else if (protocol == 58) {
		sum->offset = at + 2;
	}
}

static __always_inline int find_sum4(struct __sk_buff *skb, struct transport_sum *sum)
{
	__u8 head[20];

	sum->offset = 0;
	if (bpf_skb_load_bytes(skb, IP_OFFSET, head, sizeof(head)) || head[0] >> 4 != 4 || (head[0] & 15) < 5)
		return -1;
	if (!((head[6] & 0x1f) | head[7]) && head[9] != 58)
		sum_of(head[9], IP_OFFSET + (head[0] & 15) * 4, sum);
	return 0;
}

/* Behind more extension headers than are followed, and behind a fragment header that isn't the first's, no checksum is touched:
 * the same at both ends, so that recovery is exact all the same. */
static __always_inline int find_sum6(struct __sk_buff *skb, struct transport_sum *sum)
{
	__u32 at = IP_OFFSET + 40, i;
	__u8 head[8], next;

	sum->offset = 0;
	if (bpf_skb_load_bytes(skb, IP_OFFSET, head, sizeof(head)) || head[0] >> 4 != 6 || skb->len < IP_OFFSET + 40)
		return -1;
	next = head[6];
#pragma clang loop unroll(full)
	for (i = 0; i < REWRITE_EXTENSIONS; i++) {
		if (next != 0 && next != 43 && next != 44 && next != 51 && next != 60)
			break;
		if (bpf_skb_load_bytes(skb, at, head, sizeof(head)))
			return 0;
		/* A fragment further back has no transport header, and a routing header's last address is the one that counts. */
		if ((next == 44 && (head[2] | (head[3] & 0xf8))) || (next == 43 && head[3]))
			return 0;
		at += next == 44 ? 8 : next == 51 ? (head[1] + 2) * 4 : (head[1] + 1) * 8;
		next = head[0];
	}
	sum_of(next, at, sum);
	return 0;
}

/* Exchanges the destination address, `from` for `to`, both as struct meaning has them, and updates the checksums by the difference
 * (RFC 1624). In one's complement a checksum of all ones cannot be told from zero afterwards: which of them were is returned,
 * as the flags of an id. -1: this is no such packet. */
static __always_inline int exchange(struct __sk_buff *skb, int v6, __be32 *from, __be32 *to)
{
	struct transport_sum sum;
	__be16 before = 0;
	int flags = 0;
	__s64 diff;

	if (v6 ? find_sum6(skb, &sum) : find_sum4(skb, &sum))
		return -1;
	if (sum.offset && bpf_skb_load_bytes(skb, sum.offset, &before, 2))
		sum.offset = 0; /* cut off, or never there */
	if (before == 0xffff && !(sum.flags & BPF_F_MARK_MANGLED_0))
		flags |= REWRITE_ALL_ONES_TRANSPORT;
	diff = v6 ? bpf_csum_diff(from, 16, to, 16, 0) : bpf_csum_diff(from + 3, 4, to + 3, 4, 0);
	if (sum.offset && bpf_l4_csum_replace(skb, sum.offset, 0, diff, sum.flags))
		return -1;
	if (v6)
		return bpf_skb_store_bytes(skb, IP_OFFSET + 24, to, 16, 0) ? -1 : flags;
	if (bpf_skb_load_bytes(skb, IP_OFFSET + 10, &before, 2))
		return -1;
	if (before == 0xffff)
		flags |= REWRITE_ALL_ONES_IP;
	if (bpf_l3_csum_replace(skb, IP_OFFSET + 10, from[3], to[3], 4) || bpf_skb_store_bytes(skb, IP_OFFSET + 16, to + 3, 4, 0))
		return -1;
	return flags;
}

/* What `exchange` could not bring back by itself. */
static __always_inline int restore_all_ones(struct __sk_buff *skb, int v6, __u32 flags)
{
	struct transport_sum sum;
	__be16 ones = 0xffff;

	if (flags & REWRITE_ALL_ONES_IP && !v6 && bpf_skb_store_bytes(skb, IP_OFFSET + 10, &ones, 2, 0))
		return -1;
	if (!(flags & REWRITE_ALL_ONES_TRANSPORT))
		return 0;
	if (v6 ? find_sum6(skb, &sum) : find_sum4(skb, &sum))
		return -1;
	return sum.offset && bpf_skb_store_bytes(skb, sum.offset, &ones, 2, 0) ? -1 : 0;
}

#endif
