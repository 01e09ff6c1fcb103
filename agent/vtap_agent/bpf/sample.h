/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VTAP_SAMPLE_H
#define VTAP_SAMPLE_H

#include "maps.h"
#include "log2_table.h"

#define WINDOW_SHIFT 24
#define WINDOW_COUNT ((1ULL << WINDOW_SHIFT) - 1)
#define MAX_TRIES 16

/* -log2 of a number drawn evenly from (0, 1], in units of 2^-32: the logarithm by table, straight lines between its points. */
static __always_inline __u64 draw_log2(void)
{
	__u32 random = bpf_get_prandom_u32(), power, x;
	__u64 fraction, low, high;

	if (!random)
		return 32ULL << 32;
	x = random;
	power = 0;
	if (x >> 16) { power += 16; x >>= 16; }
	if (x >> 8) { power += 8; x >>= 8; }
	if (x >> 4) { power += 4; x >>= 4; }
	if (x >> 2) { power += 2; x >>= 2; }
	if (x >> 1) power += 1;
	fraction = ((__u64)random << (32 - power)) & 0xffffffffULL;
	low = log2_table[(fraction >> 24) & 255];
	high = log2_table[((fraction >> 24) & 255) + 1];
	return (32ULL << 32) - ((__u64)power << 32) - low - ((high - low) * (fraction & 0xffffff) >> 24);
}

/* Wire packets to pass over before the next hit: geometric, so that each packet is hit with the same chance on its own. */
static __always_inline __u32 draw_skip(const struct program *program)
{
	__u64 skip = draw_log2() * program->skip_scale >> (program->skip_shift & 63);

	return skip > 0xffffffffULL ? 0xffffffff : skip;
}

static __always_inline __u32 drawn_by(const struct program *program)
{
	return program->skip_scale ^ program->skip_shift << 26;
}

/* How many of `count` packets the window still has room for; takes them. */
static __always_inline __u32 take_from_window(struct shared *shared, const struct program *program, __u32 count)
{
	__u64 now, window, old, taken, next;
	__u32 i, granted;

	if (!program->interval_ns)
		return 0;
	now = bpf_ktime_get_coarse_ns() / program->interval_ns;
	for (i = 0; i < MAX_TRIES; i++) {
		old = *(volatile __u64 *)&shared->window;
		/* Another CPU may have read the clock later and begun the next window: that one holds. */
		window = old >> WINDOW_SHIFT == now + 1 ? now + 1 : now;
		taken = old >> WINDOW_SHIFT == window ? old & WINDOW_COUNT : 0;
		if (taken >= program->packets)
			return 0;
		granted = program->packets - taken < count ? program->packets - taken : count;
		next = window << WINDOW_SHIFT | (taken + granted);
		if (__sync_val_compare_and_swap(&shared->window, old, next) == old)
			return granted;
	}
	return 0;
}

/* The token bucket as a generic cell rate algorithm (ITU-T I.371): one word, no refilling. */
static __always_inline int bucket_conforms(const struct shared *shared, const struct program *program, __u64 now, __u32 bytes)
{
	__u64 cost = bytes * program->cost_per_byte >> 16, busy = *(volatile __u64 *)&shared->busy_until;

	if ((__s64)(busy - now) < 0)
		busy = now;
	return (__s64)(busy + cost - now) <= (__s64)program->burst;
}

static __always_inline __u64 bucket_clock(void)
{
	return bpf_ktime_get_ns() << 6;
}

static __always_inline int bucket_charge(struct shared *shared, const struct program *program, __u32 bytes)
{
	__u64 now = bucket_clock(), cost = bytes * program->cost_per_byte >> 16, old, busy;
	__u32 i;

	for (i = 0; i < MAX_TRIES; i++) {
		old = *(volatile __u64 *)&shared->busy_until;
		busy = (__s64)(old - now) < 0 ? now : old;
		busy += cost;
		if ((__s64)(busy - now) > (__s64)program->burst)
			return 0;
		if (__sync_val_compare_and_swap(&shared->busy_until, old, busy) == old)
			return 1;
	}
	return 0;
}

#endif
