/* SPDX-License-Identifier: Apache-2.0 */
/* Where a sampler wants one or two segments of a super-packet, these are cut out of it here, as the kernel would segment it
 * (tcp_gso_segment, inet_gso_segment): the others then cost nothing. TCP only: what a super-packet of UDP is can't be told here. */
#ifndef VTAP_CUT_H
#define VTAP_CUT_H

#include "parse.h"

#define TCP_FIN_PSH 0x09
#define TCP_CWR 0x80
#define IPV4_ATOMIC 0x4000

struct pick {
	struct packet packet;
	__u32 segments;
	__u32 bytes; /* with all tags */
	__u32 pending; /* mark of the selected tap point that is still to be handed over; 0 = none */
	__u32 cuts; /* how many segments of the packet it is to be cut to, 0 = it stays whole */
	__u32 cut[MAX_CUTS]; /* and which */
	__u32 pseudo; /* sum of what the TCP checksum covers in front of the length */
	__u32 hash;
	__u32 near_ifindex;
	__u32 pending_ifindex; /* where the pending one goes */
	__u32 ifindex; /* where it was picked */
	__u64 clock; /* CLOCK_MONOTONIC, 0 until it is needed */
	__u8 parsed;
	__u8 hashed;
	__u8 prepared;
	__u8 strip;
	__u8 tagged;
	__u8 ingress;
	__u8 broken;
	__u8 ended; /* what was cloned of it did not get past `enter`, which has counted it */
};

/* A length that is known to be 1…most, in a way that Linux 6.1's verifier sees it too. clang must not know that nothing changes. */
static __always_inline __u32 bounded(__u32 bytes, __u32 most)
{
	asm volatile("" : "+r"(bytes));
	return ((bytes - 1) & (most - 1)) + 1;
}

static __always_inline __u16 folded(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline __u32 transport_offset(const __u8 *headers, int v6)
{
	return v6 ? 54 : 14 + (headers[14] & 15) * 4;
}

/* Sum of addresses and protocol. */
static __always_inline __u16 pseudo_sum(const __u8 *headers, int v6)
{
	const __u32 *words = (const __u32 *)(headers + (v6 ? 22 : 26));
	__u64 sum = bpf_htons(6);
	__u32 i;

#pragma clang loop unroll(full)
	for (i = 0; i < 8; i++)
		if (v6 || i < 2)
			sum += words[i];
	return folded(sum);
}

/* Whether the packet, without tags by now, is one whose segments are known here: TCP with nothing between it and the IP header,
 * the checksum left to an offload. Keeps the headers. */
__noinline int can_cut(struct __sk_buff *skb, struct pick *c)
{
	__u32 zero = 0, size = skb->gso_size, length = skb->len, headers, transport;
	struct cut_scratch *scratch = bpf_map_lookup_elem(&cut_scratches, &zero);
	__u8 *at;
	int v6;

	if (!c || !scratch || !size || size > MAX_CUT_SEGMENT || length > 65535)
		return 0;
	if (!(c->packet.meta & META_HAS_TCP_FLAGS) || c->packet.fragment ||
	    c->packet.meta >> META_TCP_FLAGS_SHIFT & TCP_CWR)
		return 0;
	headers = c->packet.header_length;
	if (headers < 54 || headers > MAX_CUT_HEADERS || length <= headers || (length - headers + size - 1) / size != c->segments)
		return 0;
	if (bpf_skb_load_bytes(skb, 0, scratch->headers, bounded(headers, MAX_CUT_HEADERS)))
		return 0;
	at = (__u8 *)scratch->headers;
	v6 = (c->packet.meta & 0xff) == 6;
	transport = transport_offset(at, v6);
	if ((v6 && at[20] != 6) || headers != transport + (at[transport + 12] >> 4) * 4)
		return 0;
	c->pseudo = pseudo_sum(at, v6);
	return *(__u16 *)(at + transport + 16) == folded(c->pseudo + bpf_htons(length - transport));
}

struct segment {
	__u32 number;
	__u32 offset; /* of its payload in the super-packet's */
	__u32 length; /* of its payload */
	__u32 last;
};

static __always_inline void find_segment(struct segment *segment, __u32 number, __u32 size, __u32 payload)
{
	segment->number = number;
	segment->offset = number * size;
	segment->length = payload - segment->offset < size ? payload - segment->offset : size;
	segment->last = segment->offset + segment->length == payload;
}

/* What a super-packet's headers say, and its segments' are made of. */
struct origin {
	__u32 seq;
	__u16 id;
	__u8 flags;
};

static __always_inline void read_origin(const __u8 *at, int v6, struct origin *origin)
{
	__u32 transport = transport_offset(at, v6);

	origin->seq = bpf_ntohl(*(__be32 *)(at + transport + 4));
	origin->id = bpf_ntohs(*(__be16 *)(at + 18));
	origin->flags = at[transport + 13];
}

static __always_inline void write_headers(__u8 *at, const struct pick *c, const struct origin *origin, const struct segment *segment)
{
	int v6 = (c->packet.meta & 0xff) == 6;
	__u32 transport = transport_offset(at, v6), tcp = c->packet.header_length - transport + segment->length;

	if (v6) {
		*(__be16 *)(at + 18) = bpf_htons(tcp);
	} else {
		*(__be16 *)(at + 16) = bpf_htons(transport - 14 + tcp);
		/* All of a sender's packets with 0 are such that nobody looks at the number (RFC 6864). */
		if (origin->id || !(*(__be16 *)(at + 20) & bpf_htons(IPV4_ATOMIC)))
			*(__be16 *)(at + 18) = bpf_htons(origin->id + segment->number);
		*(__u16 *)(at + 24) = 0;
		*(__u16 *)(at + 24) = ~folded(bpf_csum_diff(0, 0, (__be32 *)(at + 14), (at[14] & 15) * 4, 0));
	}
	*(__be32 *)(at + transport + 4) = bpf_htonl(origin->seq + segment->offset);
	at[transport + 13] = segment->last ? origin->flags : origin->flags & ~TCP_FIN_PSH;
	*(__u16 *)(at + transport + 16) = folded(c->pseudo + bpf_htons(tcp)); /* The near end of the pair completes it. */
}

/* Makes the packet the segment whose payload is in `payload`. */
static __always_inline int become(struct __sk_buff *skb, struct pick *c, struct cut_scratch *scratch, const struct origin *origin,
				  const struct segment *segment, const __u8 *payload)
{
	__u32 headers = c->packet.header_length, length = segment->length;

	if (skb->len != headers + length && bpf_skb_change_tail(skb, headers + length, 0))
		return -1;
	write_headers((__u8 *)scratch->headers, c, origin, segment);
	if (bpf_skb_store_bytes(skb, 0, scratch->headers, bounded(headers, MAX_CUT_HEADERS), 0))
		return -1;
	return bpf_skb_store_bytes(skb, headers, payload, bounded(length, MAX_CUT_SEGMENT), 0);
}

static __always_inline int keep_payload(struct __sk_buff *skb, const struct pick *c, const struct segment *segment, __u8 *payload)
{
	if (!segment->length || segment->length > MAX_CUT_SEGMENT)
		return -1;
	return bpf_skb_load_bytes(skb, c->packet.header_length + segment->offset, payload, bounded(segment->length, MAX_CUT_SEGMENT));
}

#endif
