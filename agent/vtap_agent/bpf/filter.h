/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VTAP_FILTER_H
#define VTAP_FILTER_H

#include "parse.h"

static __always_inline int in_peer_set(const struct rule *rule, const struct packet *p)
{
	struct peer_key key = {
		.set = rule->peer_set,
		.version = p->meta & 0xff,
		.address = {p->peer[0], p->peer[1]},
	};

	return bpf_map_lookup_elem(&peers, &key) != 0;
}

static __always_inline int rule_matches(const struct rule *rule, const struct packet *p)
{
	if ((p->meta & rule->meta_mask) != rule->meta)
		return 0;
	if (((p->peer[0] & rule->peer_mask[0]) ^ rule->peer[0]) | ((p->peer[1] & rule->peer_mask[1]) ^ rule->peer[1]))
		return 0;
	if ((__u16)(p->peer_port - rule->peer_first) > (__u16)(rule->peer_last - rule->peer_first))
		return 0;
	if ((__u16)(p->pod_port - rule->pod_first) > (__u16)(rule->pod_last - rule->pod_first))
		return 0;
	return !rule->uses_peer_set || in_peer_set(rule, p);
}

/* Rules from the second on. Not static: the verifier then looks at it once, and not for all that a packet may be; and inlined its loop
 * may come out in an order that Linux 6.1 takes for a jump back. */
__noinline int decide_by_others(const struct program *program, const struct packet *p)
{
	__u32 i, count;

	if (!program || !p)
		return 0;
	count = program->rule_count;
#pragma clang loop unroll(disable)
	for (i = 1; i < MAX_MATCHES; i++) {
		if (i >= count)
			break;
		if (rule_matches(&program->rules[i], p))
			return program->rules[i].include;
	}
	return program->flags & PROGRAM_INCLUDE;
}

/* The first rule that matches decides. There is one at least; where there are no others no call is needed. */
static __always_inline int decide(const struct program *program, const struct packet *p)
{
	if (rule_matches(&program->rules[0], p))
		return program->rules[0].include;
	return program->rule_count == 1 ? program->flags & PROGRAM_INCLUDE : decide_by_others(program, p);
}

#endif
