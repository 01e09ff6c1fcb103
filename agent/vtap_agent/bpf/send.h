/* SPDX-License-Identifier: Apache-2.0 */
/* At the far end of the pair: finish sampling, cut, number, wrap, fragment, and off to the uplink. */
#ifndef VTAP_SEND_H
#define VTAP_SEND_H

#include "sample.h"

#define ETHERNET 14
#define FRAGMENT_HEADER 8
#define IPV4_DF 0x4000
#define IPV4_MF 0x2000
#define MAX_FRAGMENTS 8
#define LAST_FRAGMENT 320
#define MINIMAL_MTU 256
#define MAX_FRAME 65000

/* Packed to four bytes: without alignment clang writes byte by byte. */
#pragma pack(push, 4)
struct trailer {
	__be64 time;
	__be32 length;
	__be16 flags;
	__u8 version;
	__u8 zero;
	__be32 magic;
};
#pragma pack(pop)

struct job {
	struct ticket *ticket;
	struct send_counters *counters;
	struct destination *destination;
	struct scratch *scratch;
	struct copy *copy;
	struct point *point;
};

static __always_inline int next_selected(struct ticket *ticket, const struct program *program)
{
	__u32 segment = ticket->segment++, mode = ticket->mode & ~(TICKET_LIMITED | TICKET_CUT);

	if (mode == TICKET_WHOLE)
		return 1;
	if (mode == TICKET_FIRST)
		return segment < ticket->chosen;
	if (segment != ticket->chosen)
		return 0;
	if (ticket->following) {
		ticket->chosen = ticket->following & 0xffff;
		ticket->following >>= 16;
	} else if (program) {
		__u64 following = (__u64)segment + 1 + draw_skip(program);

		ticket->chosen = following > 0xffffffffULL ? 0xffffffff : following;
	}
	return 1;
}

static __always_inline void count_state(struct send_counters *counters, __u32 state)
{
	if (state == 1)
		counters->dropped_no_route++;
	else if (state == 2)
		counters->dropped_no_neighbour++;
	else
		counters->dropped_not_ready++;
}

/* Outer Ethernet, IP and fragment header. */
static __always_inline __u32 outer_header(const struct destination *d, int fragmented)
{
	return ETHERNET + d->ip_length + (fragmented && d->flags & DESTINATION_IPV6 ? FRAGMENT_HEADER : 0);
}

static __always_inline __u32 outer_bytes(const struct job *j)
{
	return j->copy->payload + j->copy->parts * outer_header(j->destination, j->copy->parts > 1);
}

/* Into how many fragments, and how large. The last one isn't tiny: the kernel refuses to cut a packet in front of where it
 * believes the transport header to be, which is still the inner one's place. */
static __always_inline int divide(struct job *j)
{
	__u32 most = (j->destination->mtu + ETHERNET - outer_header(j->destination, 1)) & ~7u;

	if (!(j->destination->flags & DESTINATION_FRAGMENT) || j->copy->payload > most * MAX_FRAGMENTS)
		return -1;
	if (j->copy->payload <= most * 2) {
		j->copy->parts = 2;
		j->copy->part = (j->copy->payload - LAST_FRAGMENT) & ~7u;
		if (j->copy->payload < 2 * LAST_FRAGMENT)
			j->copy->part = (j->copy->payload / 2 + 7) & ~7u;
		if (j->copy->part > most)
			j->copy->part = most;
	} else {
		j->copy->parts = (j->copy->payload + most - 1) / most;
		j->copy->part = (j->copy->payload / j->copy->parts + 8) & ~7u;
		if (j->copy->part > most)
			j->copy->part = most;
	}
	if (j->copy->payload - j->copy->part < FRAGMENT_BYTES)
		return 0;
	j->copy->parts = 1;
	return -1;
}

/* Decides what is kept, and whether it leaves in one piece. -1: nothing useful fits. */
static __always_inline int size_up(struct job *j, __u32 length)
{
	const struct destination *d = j->destination;
	const struct ticket *t = j->ticket;
	__u32 tags = t->tag_count * 4, tunnel = d->header_length - ETHERNET - d->ip_length;
	__u32 trailer = d->flags & DESTINATION_TRAILER ? TRAILER_LENGTH : 0, room;

	j->copy->frame = j->copy->kept = length + tags;
	j->copy->flags = 0;
	j->copy->parts = 1;
	if (t->cut && t->cut < j->copy->kept) {
		j->copy->kept = t->cut < ETHERNET + tags ? ETHERNET + tags : t->cut;
		if (j->copy->kept < j->copy->frame)
			j->copy->flags = TRAILER_CUT;
	}
	j->copy->payload = tunnel + j->copy->kept + trailer;
	if (d->ip_length + j->copy->payload <= d->mtu)
		return 0;
	if (d->mtu < MINIMAL_MTU)
		return -1;
	if (!divide(j))
		return 0;
	room = d->ip_length + tunnel + trailer;
	if (d->mtu < room + ETHERNET + tags)
		return -1;
	j->copy->kept = d->mtu - room;
	j->copy->payload = tunnel + j->copy->kept + trailer;
	j->copy->flags |= TRAILER_OVERSIZE;
	return 0;
}

static __always_inline int write_trailer(struct __sk_buff *skb, const struct job *j, __u32 offset)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct trailer *trailer;

	if (offset > MAX_FRAME)
		return -1;
	trailer = data + offset;
	if ((void *)(trailer + 1) > end)
		return -1;
	trailer->time = bpf_cpu_to_be64(j->ticket->time);
	trailer->length = bpf_htonl(j->copy->frame);
	trailer->flags = bpf_htons(j->copy->flags);
	trailer->version = TRAILER_VERSION;
	trailer->zero = 0;
	trailer->magic = bpf_htonl(TRAILER_MAGIC);
	return 0;
}

/* A TCP checksum that comes out as zero is written as such by segmentation, and as all ones where `pick` cut. */
static __always_inline void unify_checksum(struct __sk_buff *skb)
{
	__u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__be16 *checksum;

	if (data + 54 > end)
		return;
	checksum = (void *)data + (data[14] >> 4 == 6 ? 54 : 14 + (data[14] & 15) * 4) + 16;
	if ((void *)(checksum + 1) <= (void *)end && *checksum == 0xffff)
		*checksum = 0;
}

/* The frame without tags gets its kept length and the trailer. */
static __always_inline int shape(struct __sk_buff *skb, struct job *j)
{
	struct ticket *t = j->ticket;
	__u32 bare = j->copy->kept - t->tag_count * 4;
	if (j->copy->kept < j->copy->frame && bpf_skb_change_tail(skb, bare, 0)) {
		/* The kernel cuts nothing in front of the transport header. */
		bare = t->header_length;
		if (bare >= skb->len || bpf_skb_change_tail(skb, bare, 0))
			return -1;
		j->copy->payload += bare + t->tag_count * 4 - j->copy->kept;
		j->copy->kept = bare + t->tag_count * 4;
	}
	if (!(j->destination->flags & DESTINATION_TRAILER))
		return 0;
	if (bpf_skb_change_tail(skb, bare + TRAILER_LENGTH, 0))
		return -1;
	return write_trailer(skb, j, bare);
}

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* `fragment` is the IPv4 field, or IPv6's offset with the M bit, in host order. */
static __always_inline void finish_ip(const struct destination *d, __u8 *header, __u32 payload, __u32 fragment, __u32 id, int fragmented)
{
	if (d->flags & DESTINATION_IPV6) {
		if (fragmented) {
			header[ETHERNET + 6] = 44;
			header[ETHERNET + 40] = ((const __u8 *)d->header)[ETHERNET + 6];
			header[ETHERNET + 41] = 0;
			*(__be16 *)(header + ETHERNET + 42) = bpf_htons(fragment);
			*(__be32 *)(header + ETHERNET + 44) = bpf_htonl(id);
			payload += FRAGMENT_HEADER;
		}
		*(__be16 *)(header + ETHERNET + 4) = bpf_htons(payload);
		return;
	}
	__be16 length = bpf_htons(payload + 20), identity = bpf_htons(id), offset = bpf_htons(fragment);

	*(__be16 *)(header + ETHERNET + 2) = length;
	*(__be16 *)(header + ETHERNET + 4) = identity;
	*(__be16 *)(header + ETHERNET + 6) = offset;
	*(__be16 *)(header + ETHERNET + 10) = fold(d->checksum + length + identity + offset);
}

static __always_inline __u32 stream_id(const struct job *j)
{
	return j->destination->flags & DESTINATION_FIXED_ID ? j->destination->fixed_id : j->point->key;
}

static __always_inline void finish_udp(__u8 *udp, const struct job *j)
{
	*(__be16 *)udp = bpf_htons(49152 + (j->ticket->flow_hash & 16383));
	*(__be16 *)(udp + 4) = bpf_htons(j->copy->payload);
}

static __always_inline void finish_tunnel(__u8 *tunnel, const struct job *j)
{
	__u32 kind = j->destination->encapsulation, id = stream_id(j);

	if (kind == ENCAP_GRE_UDP) {
		finish_udp(tunnel, j);
		*(__be32 *)(tunnel + 12) = bpf_htonl(id);
		*(__be32 *)(tunnel + 16) = bpf_htonl(j->copy->sequence);
	} else if (kind == ENCAP_GRE) {
		*(__be32 *)(tunnel + 4) = bpf_htonl(id);
		*(__be32 *)(tunnel + 8) = bpf_htonl(j->copy->sequence);
	} else if (kind == ENCAP_VXLAN) {
		finish_udp(tunnel, j);
		*(__be32 *)(tunnel + 12) = bpf_htonl(id << 8);
	} else {
		__u32 vlan = j->ticket->tag_count ? bpf_ntohs(j->ticket->tags[0] >> 16) : 0;
		__u32 word = 0x10000000 | (vlan & 0xfff) << 16 | (vlan >> 13) << 13 | (id & 0x3ff);

		if (j->ticket->tag_count)
			word |= 3 << 11;
		if (j->copy->kept < j->copy->frame)
			word |= 1 << 10;
		*(__be32 *)(tunnel + 4) = bpf_htonl(j->copy->sequence);
		*(__be32 *)(tunnel + 8) = bpf_htonl(word);
		*(__be32 *)(tunnel + 12) =
			bpf_htonl(((__u32)j->ticket->slot << 1 | (j->point->flags & POINT_EGRESS)) & 0xfffff);
	}
}

static __always_inline void copy_words(__u64 *to, const __u64 *from, __u32 words)
{
	__u32 i;

#pragma clang loop unroll(full)
	for (i = 0; i < words; i++)
		to[i] = from[i];
}

/* The default: GRE-in-UDP in one piece, no tag to put back. Written into the packet, whose MAC addresses are in their place. */
static __always_inline int wrap_plain(struct __sk_buff *skb, struct job *j, int v6)
{
	const struct destination *d = j->destination;
	const __u32 ip = v6 ? 40 : 20, length = ETHERNET + ip + 20;
	void *data, *end;

	if (bpf_skb_change_head(skb, length, 0))
		return -1;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + length + ETHERNET > end)
		return -1;
	copy_words(data, d->header, length / 8); /* up to the key and the sequence, which are the packet's own */
	finish_udp(data + ETHERNET + ip, j);
	*(__be32 *)(data + ETHERNET + ip + 12) = bpf_htonl(stream_id(j));
	*(__be32 *)(data + ETHERNET + ip + 16) = bpf_htonl(j->copy->sequence);
	finish_ip(d, data, j->copy->payload, v6 ? 0 : IPV4_DF, 0, 0);
	*(__u16 *)(data + length + 12) = j->ticket->ethertype;
	return 0;
}

/* Puts the outer headers, the copy's MAC addresses, its tags and its EtherType in front. */
static __always_inline int wrap(struct __sk_buff *skb, struct job *j)
{
	const struct destination *d = j->destination;
	__u8 *header = (__u8 *)j->scratch->header;
	__u32 tags = j->ticket->tag_count & (MAX_TAGS * 2 - 1), gap, length, at, i;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u8 macs[12];
	int v6 = d->flags & DESTINATION_IPV6;

	if (data + ETHERNET > end)
		return -1;
	__builtin_memcpy(macs, data, 12);
	gap = v6 && j->copy->parts > 1 ? FRAGMENT_HEADER : 0;
	length = d->header_length + gap;
	if (length > MAX_HEADER || d->header_length < 42)
		return -1;
	if (bpf_skb_change_head(skb, length + tags * 4, 0))
		return -1;
	copy_words(j->scratch->header, d->header, 12);
	if (gap) /* What is behind the IPv6 header moves by a word. The two bytes too many become the fragment header's. */
		copy_words(j->scratch->header + 7, d->header + 6, 6);
	at = v6 ? ETHERNET + 40 + gap : ETHERNET + 20;
	finish_tunnel(header + at, j);
	if (j->copy->parts == 1)
		finish_ip(d, header, j->copy->payload, v6 ? 0 : IPV4_DF, 0, 0);
	at = length & (MAX_HEADER - 1);
	__builtin_memcpy(header + at, macs, 12);
	at += 12;
	for (i = 0; i < MAX_TAGS; i++) {
		if (i >= tags)
			break;
		*(__u32 *)(header + at) = j->ticket->tags[i];
		at += 4;
	}
	*(__u16 *)(header + at) = j->ticket->ethertype;
	at += 2;
	return bpf_skb_store_bytes(skb, 0, header, at, 0);
}

static __always_inline int wrap_up(struct __sk_buff *skb, struct job *j)
{
	if (j->destination->encapsulation != ENCAP_GRE_UDP || j->copy->parts > 1 || j->ticket->tag_count)
		return wrap(skb, j);
	return j->destination->flags & DESTINATION_IPV6 ? wrap_plain(skb, j, 1) : wrap_plain(skb, j, 0);
}

/* A length that a helper takes, from 1 on. Linux 6.1's verifier learns nothing from a comparison with 0, and clang must not know
 * that nothing changes here. */
static __always_inline __u32 length_of(__u32 bytes)
{
	asm volatile("" : "+r"(bytes));
	return ((bytes - 1) & (FRAGMENT_BYTES - 1)) + 1;
}

/* Emits fragment after fragment: the rest of the packet waits in scratch memory while the front leaves as a clone. */
static __always_inline int fragment(struct __sk_buff *skb, struct job *j)
{
	const struct destination *d = j->destination;
	__u32 header = outer_header(d, 1), rest = j->copy->payload - j->copy->part, offset = 0, size = j->copy->part, id, i, *counter, number;
	int v6 = d->flags & DESTINATION_IPV6;
	long failed;

	number = j->point->destination;
	counter = bpf_map_lookup_elem(&fragment_ids, &number);
	if (!counter || !rest || rest >= FRAGMENT_BYTES || header > ETHERNET + 48)
		return TC_ACT_SHOT;
	id = __sync_fetch_and_add(counter, 1);
	if (bpf_skb_load_bytes(skb, header + size, j->scratch->tail, length_of(rest)) || bpf_skb_change_tail(skb, header + size, 0))
		return TC_ACT_SHOT;
	for (i = 0; i < MAX_FRAGMENTS; i++) {
		int more = offset + size < j->copy->payload;

		finish_ip(d, (__u8 *)j->scratch->header, size, v6 ? offset | more : offset >> 3 | (more ? IPV4_MF : 0), id, 1);
		if (bpf_skb_store_bytes(skb, 0, j->scratch->header, length_of(header), 0))
			return TC_ACT_SHOT;
		if (!more)
			return bpf_redirect(d->ifindex, 0);
		failed = bpf_clone_redirect(skb, d->ifindex, 0);
		if (failed < 0)
			return TC_ACT_SHOT;
		offset += size;
		size = j->copy->payload - offset < j->copy->part ? j->copy->payload - offset : j->copy->part;
		rest = offset - j->copy->part;
		if (rest >= FRAGMENT_BYTES || !size || size >= FRAGMENT_BYTES)
			return TC_ACT_SHOT;
		/* clang 18 compares what the difference was made of, and the verifier learns nothing of the difference. */
		asm volatile("" : "+r"(rest));
		rest &= FRAGMENT_BYTES - 1;
		if (bpf_skb_change_tail(skb, header + size, 0) ||
		    bpf_skb_store_bytes(skb, header, j->scratch->tail + rest, length_of(size), 0))
			return TC_ACT_SHOT;
	}
	return TC_ACT_SHOT;
}

/* A copy that could not leave gives its number back, unless another has taken the next one since. */
static __always_inline int give_back(struct shared *shared, const struct job *j)
{
	return __sync_val_compare_and_swap(&shared->sequence, j->copy->sequence + 1, j->copy->sequence) == j->copy->sequence + 1;
}

#endif
