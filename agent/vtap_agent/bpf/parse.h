/* SPDX-License-Identifier: Apache-2.0 */
/* Reads a frame once: tags, addresses, protocol, ports, TCP flags, symmetric flow hash. */
#ifndef VTAP_PARSE_H
#define VTAP_PARSE_H

#include "maps.h"

/* IPv6 extension headers are followed this far into the packet; with tags and a transport header that is PARSED_BYTES at most. */
#define MAX_EXTENSION_OFFSET 192
#define PARSED_BYTES 256
#define MAX_EXTENSIONS 6

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_IPV6 0x86dd
#define ETHERTYPE_ARP 0x0806
#define ETHERTYPE_8021Q 0x8100
#define ETHERTYPE_8021AD 0x88a8

struct ethernet {
	__u8 destination[6];
	__u8 source[6];
	__be16 type;
} __attribute__((packed));

struct packet {
	__u64 meta;
	__u64 peer[2];
	__u64 pod[2];
	__u16 peer_port;
	__u16 pod_port;
	__u16 l3; /* offset of the network header in the data */
	__u16 header_length; /* Ethernet to transport header, without tags */
	__be16 ethertype; /* behind all tags */
	__u16 tag_count; /* the pod's, and the bridge's where it shows one */
	__u32 tags[MAX_TAGS];
	__u16 fragment; /* part of a fragmented datagram */
	__u16 zero;
};

#define HASH_HIGH 0xc2b2ae3d27d4eb4fULL
#define HASH_PORT 0x9e3779b97f4a7c15ULL

static __always_inline __u64 mix(__u64 x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ULL;
	return x ^ (x >> 33);
}

/* The same for both directions of a flow: the ends are hashed apart and added. */
static __always_inline __u32 flow_hash(const struct packet *p)
{
	__u64 peer_port = p->fragment ? 0 : p->peer_port, pod_port = p->fragment ? 0 : p->pod_port;
	__u64 peer = mix(p->peer[0] * HASH_HIGH + p->peer[1] + peer_port * HASH_PORT);
	__u64 pod = mix(p->pod[0] * HASH_HIGH + p->pod[1] + pod_port * HASH_PORT);

	return mix(peer + pod + ((p->meta >> META_PROTOCOL_SHIFT) & 0xff)) >> 32;
}

static __always_inline int is_tag(__be16 type)
{
	return type == bpf_htons(ETHERTYPE_8021Q) || type == bpf_htons(ETHERTYPE_8021AD);
}

static __always_inline __u32 metadata_tag(struct __sk_buff *skb)
{
	return (__u32)(__u16)skb->vlan_proto | (__u32)bpf_htons(skb->vlan_tci) << 16;
}

static __always_inline __u16 tag_vid(__u32 tag)
{
	return bpf_ntohs(tag >> 16) & 0xfff;
}

static __always_inline void transport(void *at, void *end, __u8 protocol, struct packet *p, __u32 offset, int ingress)
{
	__u8 *l4 = at;
	__u32 length = 0;
	__u16 from, to;

	if (protocol == 6) {
		if (at + 20 > end)
			return;
		p->meta |= META_HAS_TCP_FLAGS | (__u64)l4[13] << META_TCP_FLAGS_SHIFT;
		length = (l4[12] >> 4) * 4;
	} else if (protocol == 17) {
		length = 8;
	} else if (protocol == 132) {
		length = 12;
	} else if (protocol == 1 || protocol == 58) {
		p->header_length = offset + 8;
		return;
	} else {
		return;
	}
	if (at + 8 > end)
		return;
	from = bpf_ntohs(*(__be16 *)at);
	to = bpf_ntohs(*(__be16 *)(at + 2));
	p->pod_port = ingress ? to : from;
	p->peer_port = ingress ? from : to;
	p->meta |= META_HAS_PORTS;
	p->header_length = offset + length;
}

static __always_inline void ipv4(void *data, void *end, struct packet *p, int ingress)
{
	__u8 *ip = data + p->l3;
	__u32 header, from, to;
	__u16 fragment;

	if ((void *)ip + 20 > end || ip[0] >> 4 != 4)
		return;
	header = (ip[0] & 15) * 4;
	if (header < 20)
		return;
	fragment = bpf_ntohs(*(__be16 *)(ip + 6));
	from = *(__u32 *)(ip + 12);
	to = *(__u32 *)(ip + 16);
	p->meta |= META_IS_IP | 4ULL << META_VERSION_SHIFT | (__u64)ip[9] << META_PROTOCOL_SHIFT;
	p->peer[0] = p->pod[0] = 0;
	p->peer[1] = (__u64)(ingress ? from : to) << 32 | 0xffff0000ULL;
	p->pod[1] = (__u64)(ingress ? to : from) << 32 | 0xffff0000ULL;
	p->header_length = 14 + header;
	p->fragment = (fragment & 0x3fff) != 0;
	if (!(fragment & 0x1fff))
		transport((void *)ip + header, end, ip[9], p, 14 + header, ingress);
}

static __always_inline void ipv6(void *data, void *end, struct packet *p, int ingress)
{
	__u8 *ip = data + p->l3;
	__u32 offset = 40, i;
	__u8 next;
	int first = 1;

	if ((void *)ip + 40 > end || ip[0] >> 4 != 6)
		return;
	next = ip[6];
	__u64 *from = (void *)ip + 8, *to = (void *)ip + 24;
	p->peer[0] = ingress ? from[0] : to[0];
	p->peer[1] = ingress ? from[1] : to[1];
	p->pod[0] = ingress ? to[0] : from[0];
	p->pod[1] = ingress ? to[1] : from[1];
#pragma clang loop unroll(full)
	for (i = 0; i < MAX_EXTENSIONS; i++) {
		__u8 *extension = (void *)ip + offset;

		if (next != 0 && next != 43 && next != 44 && next != 51 && next != 60)
			break;
		if (offset > MAX_EXTENSION_OFFSET || (void *)extension + 8 > end)
			break;
		if (next == 44) {
			__u16 fragment = bpf_ntohs(*(__be16 *)(extension + 2));

			p->fragment = (fragment & 0xfff9) != 0;
			first = !(fragment & 0xfff8);
			offset += 8;
		} else if (next == 51) {
			offset += (extension[1] + 2) * 4;
		} else {
			offset += (extension[1] + 1) * 8;
		}
		next = extension[0];
		if (!first)
			break;
	}
	p->meta |= META_IS_IP | 6ULL << META_VERSION_SHIFT | (__u64)next << META_PROTOCOL_SHIFT;
	if (offset > MAX_EXTENSION_OFFSET)
		return;
	p->header_length = 14 + offset;
	if (first)
		transport((void *)ip + offset, end, next, p, 14 + offset, ingress);
}

/* Non-IP: the ends are the MAC addresses, so that a flow hash exists. */
static __always_inline void other(const struct ethernet *eth, struct packet *p, int ingress)
{
	__u64 from = 0, to = 0;

	__builtin_memcpy(&from, eth->source, 6);
	__builtin_memcpy(&to, eth->destination, 6);
	p->peer[0] = p->pod[0] = 0;
	p->peer[1] = ingress ? from : to;
	p->pod[1] = ingress ? to : from;
	p->header_length = p->ethertype == bpf_htons(ETHERTYPE_ARP) ? 14 + 28 : 14;
}

/* The most common kind without detours: untagged IPv4 without options, TCP or UDP, in one piece. 0 when it is another. */
static __always_inline int parse_plain(void *data, void *end, struct packet *p, int ingress)
{
	__u8 *ip = data + 14;
	__u32 from, to;
	__u64 meta;
	__u16 sport, dport;

	if (data + 54 > end || *(__be16 *)(data + 12) != bpf_htons(ETHERTYPE_IPV4) || ip[0] != 0x45 ||
	    *(__be16 *)(ip + 6) & bpf_htons(0x3fff))
		return 0;
	if (ip[9] == 6) {
		meta = META_IS_IP | META_HAS_PORTS | META_HAS_TCP_FLAGS | 6 << META_PROTOCOL_SHIFT | 4 |
		       (__u64)ip[33] << META_TCP_FLAGS_SHIFT;
		p->header_length = 34 + (ip[32] >> 4) * 4;
	} else if (ip[9] == 17) {
		meta = META_IS_IP | META_HAS_PORTS | 17 << META_PROTOCOL_SHIFT | 4;
		p->header_length = 42;
	} else {
		return 0;
	}
	from = *(__u32 *)(ip + 12);
	to = *(__u32 *)(ip + 16);
	sport = bpf_ntohs(*(__be16 *)(ip + 20));
	dport = bpf_ntohs(*(__be16 *)(ip + 22));
	p->meta = meta;
	p->peer[0] = p->pod[0] = 0;
	p->peer[1] = (__u64)(ingress ? from : to) << 32 | 0xffff0000ULL;
	p->pod[1] = (__u64)(ingress ? to : from) << 32 | 0xffff0000ULL;
	p->peer_port = ingress ? sport : dport;
	p->pod_port = ingress ? dport : sport;
	p->l3 = 14;
	p->ethertype = bpf_htons(ETHERTYPE_IPV4);
	p->tag_count = 0;
	p->fragment = 0;
	return 1;
}

static __always_inline int parse(struct __sk_buff *skb, struct packet *p, int ingress)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 wanted, offset = 14, i;
	struct ethernet *eth;
	__be16 type;

	if (!skb->vlan_present && parse_plain(data, end, p, ingress))
		return 0;
	wanted = skb->len < PARSED_BYTES ? skb->len : PARSED_BYTES;
	if (data + wanted > end) {
		bpf_skb_pull_data(skb, wanted);
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	eth = data;
	if (data + sizeof(*eth) > end)
		return -1;
	type = eth->type;
	p->meta = 0;
	p->tag_count = 0;
	p->fragment = 0;
	p->pod_port = p->peer_port = 0;
	if (skb->vlan_present)
		p->tags[p->tag_count++] = metadata_tag(skb);
#pragma clang loop unroll(full)
	for (i = 0; i < MAX_TAGS; i++) {
		if (!is_tag(type))
			break;
		if (p->tag_count >= MAX_TAGS || data + offset + 4 > end)
			return -1;
		p->tags[p->tag_count & (MAX_TAGS - 1)] = (__u32)type | (__u32)*(__u16 *)(data + offset) << 16;
		p->tag_count++;
		type = *(__be16 *)(data + offset + 2);
		offset += 4;
	}
	if (is_tag(type))
		return -1;
	p->ethertype = type;
	p->l3 = offset;
	other(eth, p, ingress);
	if (type == bpf_htons(ETHERTYPE_IPV4))
		ipv4(data, end, p, ingress);
	else if (type == bpf_htons(ETHERTYPE_IPV6))
		ipv6(data, end, p, ingress);
	return 0;
}

#endif
