// SPDX-License-Identifier: Apache-2.0
/* The preprocessor with programs around it that undo what it does to a packet, so that one packet can be run many times. */
#include "preprocessor.bpf.c"

SEC("tc")
int empty(struct __sk_buff *skb)
{
	return TC_ACT_SHOT;
}

SEC("tc")
int pick_again(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;

	if (data + ETHERNET <= (void *)(long)skb->data_end)
		*(__be16 *)(data + 12) = bpf_htons(ETHERTYPE_IPV4);
	return pick(skb, 1);
}

/* GRE-in-UDP over IPv4: 54 bytes that the next run does without again. */
#define OUTER 54

SEC("tc")
int send_again(struct __sk_buff *skb)
{
	int verdict;

	skb->mark = 1 << 22 | 1;
	verdict = send_copy(skb);
	bpf_skb_adjust_room(skb, -OUTER, BPF_ADJ_ROOM_MAC, 0);
	return verdict;
}

SEC("tc")
int undo_again(struct __sk_buff *skb)
{
	if (bpf_skb_change_head(skb, OUTER, 0))
		return TC_ACT_OK;
	bpf_skb_adjust_room(skb, -OUTER, BPF_ADJ_ROOM_MAC, 0);
	return TC_ACT_SHOT;
}

SEC("tc")
int head_again(struct __sk_buff *skb)
{
	return bpf_skb_change_head(skb, 4, 0) ? TC_ACT_OK : TC_ACT_SHOT;
}
