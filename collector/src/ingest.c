/* One datagram at a time, on the receive thread and under the table lock: parse, attribute, account, append. */
#include "core.h"

#include <string.h>

#define POOL_AGE (15 * NS_PER_SECOND)

/* ---- chunks and sections ---- */

static void seal(struct vtc_collector *collector, struct tap *tap)
{
    struct chunk *chunk = tap->chunk;
    if (!chunk)
        return;
    tap->chunk = NULL;
    chunk->interfaces = chunk->section->count; /* only this thread adds to it */
    if (collector->consumer_count)
        live_offer(collector, tap, chunk);
    writer_push(collector, chunk);
}

void ingest_end_section(struct vtc_collector *collector, struct tap *tap)
{
    seal(collector, tap);
    if (!tap->section)
        return;
    struct chunk *end = chunk_end(tap->section);
    if (end)
        writer_push(collector, end);
    section_put(tap->section); /* without `end`, the writer closes the file when the next section begins */
    tap->section = NULL;
}

static bool rotation_due(const struct vtc_collector *collector, const struct tap *tap, uint32_t length)
{
    const struct vtc_config *config = &collector->config;
    if (tap->packets == 0)
        return false;
    return (config->rotate_bytes && tap->bytes + length > config->rotate_bytes) ||
           (config->rotate_packets && tap->packets >= config->rotate_packets) ||
           (config->rotate_ns && collector->now_ns - tap->started_ns >= config->rotate_ns);
}

/* A tap's pods come and go; what describes them is kept until the section ends. Streams that are open may all be in it. */
static bool interfaces_full(const struct vtc_collector *collector, const struct tap *tap)
{
    const uint64_t open = 2ull * tap->streams, limit = collector->config.rotate_interfaces;
    return tap->section->count >= (open > limit ? open : limit);
}

static bool begin_section(struct vtc_collector *collector, struct tap *tap)
{
    tap->section = section_new(tap, tap->state->next_number + 1);
    if (!tap->section)
        return false;
    PUT(tap->state->next_number, tap->section->number);
    tap->bytes = tap->packets = 0;
    tap->started_ns = collector->now_ns;
    return true;
}

static bool join_section(struct tap *tap, struct stream *stream)
{
    const int interface = section_add(tap->section, stream->iface);
    if (interface < 0)
        return false;
    stream->interface = (uint32_t)interface;
    stream->section = tap->section->number;
    tap->bytes += stream->iface->idb_length;
    return true;
}

/* Chunks that wait to fill while none is left would wait for nothing. */
static struct chunk *take_chunk(struct vtc_collector *collector, struct tap *tap)
{
    struct chunk *chunk = chunk_take(&collector->pool, tap->section, collector->now_ns);
    if (!chunk)
        ingest_flush(collector, 0);
    return chunk;
}

static uint8_t *reserve(struct vtc_collector *collector, struct stream *stream, uint32_t length)
{
    struct tap *tap = stream->tap;
    if (tap->section && rotation_due(collector, tap, length))
        ingest_end_section(collector, tap);
    if (tap->section && stream->section != tap->section->number && interfaces_full(collector, tap))
        ingest_end_section(collector, tap);
    if (!tap->section && !begin_section(collector, tap))
        return NULL;
    if (stream->section != tap->section->number && !join_section(tap, stream))
        return NULL;
    if (tap->chunk && collector->config.chunk_bytes - tap->chunk->used < length)
        seal(collector, tap);
    if (!tap->chunk && !(tap->chunk = take_chunk(collector, tap)))
        return NULL;
    if (!tap->dirty) {
        tap->dirty = true;
        tap->next_dirty = collector->dirty;
        collector->dirty = tap;
    }
    struct chunk *chunk = tap->chunk;
    uint8_t *at = chunk->data + chunk->used;
    chunk->used += length;
    chunk->packets++;
    tap->bytes += length;
    tap->packets++;
    return at;
}

void ingest_flush(struct vtc_collector *collector, uint64_t older_than_ns)
{
    struct tap **at = &collector->dirty;
    while (*at) {
        struct tap *tap = *at;
        if (tap->chunk && older_than_ns && collector->now_ns - tap->chunk->born_ns < older_than_ns) {
            at = &tap->next_dirty;
            continue;
        }
        *at = tap->next_dirty;
        tap->dirty = false;
        seal(collector, tap);
    }
}

/* ---- accounting ---- */

void ingest_overflow(struct vtc_collector *collector, uint64_t drops)
{
    if (drops == 0)
        return;
    COUNT(collector->receive_counts.socket_overflow, drops);
    collector->overflow_pool += drops;
    collector->pool_ns = collector->now_ns;
}

static void count_lost(struct vtc_collector *collector, struct stream_state *state, uint64_t lost)
{
    if (!collector->drops_fresh) {
        ingest_overflow(collector, receive_refresh_drops(collector));
        collector->drops_fresh = true;
    }
    const uint64_t explained = lost < collector->overflow_pool ? lost : collector->overflow_pool;
    collector->overflow_pool -= explained;
    COUNT(state->lost_socket, explained);
    COUNT(state->lost_network, lost - explained);
}

/* Places the window where the first numbered copy belongs. What totals have told to be lost before it came stays lost, and is not
 * counted again; what is missing beyond that opens as a gap. */
static void begin_sequence(struct stream_state *state, uint32_t sequence, uint64_t *lost)
{
    const uint64_t known = state->received + state->lost_network + state->lost_socket;
    uint64_t counted = 0;
    gaps_expect(&state->gaps, known, &counted);
    gaps_settle(&state->gaps, known);
    const uint64_t first = gaps_nearest(state->total_next > known ? state->total_next : known, sequence);
    if (first != UINT64_MAX)
        gaps_expect(&state->gaps, first, lost);
    PUT(state->sequenced, 1);
}

/* What a process that is killed meanwhile has half done; the kernel shows a dead process's writes in their order. */
static void judge(struct stream_state *state, enum judging judging)
{
    atomic_signal_fence(memory_order_seq_cst);
    PUT(state->judging, judging);
    atomic_signal_fence(memory_order_seq_cst);
}

/* True where the copy is the first of its number and in time. */
static bool count_arrival(struct vtc_collector *collector, struct stream *stream, const struct wire_copy *copy)
{
    struct stream_state *state = stream->state;
    judge(state, JUDGING_ARRIVAL);
    if (copy->has_sequence) {
        uint64_t lost = 0;
        if (!state->sequenced || state->gaps.next == 0)
            begin_sequence(state, copy->sequence, &lost);
        const enum gaps_verdict verdict = gaps_arrive(&state->gaps, copy->sequence, &lost);
        if (lost)
            count_lost(collector, state, lost);
        if (verdict != GAPS_NEW) {
            if (verdict == GAPS_DUPLICATE)
                COUNT(state->duplicate, 1);
            else
                COUNT(state->late, 1);
            judge(state, JUDGING_NOTHING);
            return false;
        }
    }
    COUNT(state->received, 1);
    judge(state, JUDGING_NOTHING);
    COUNT(state->received_bytes, copy->frame_length);
    return true;
}

static void append(struct vtc_collector *collector, struct stream *stream, const struct wire_copy *copy, uint64_t time_ns, uint32_t original)
{
    uint8_t *at = reserve(collector, stream, pcapng_epb_length(copy->frame_length));
    if (!at) {
        COUNT(stream->state->dropped_slow, 1);
        return;
    }
    pcapng_put_epb(at, stream->interface, time_ns, copy->frame, copy->frame_length, original, stream->direction);
}

static bool parse(enum vtc_source kind, const uint8_t *payload, size_t length, struct wire_copy *copy)
{
    const uint8_t *gre;
    size_t gre_length;
    switch (kind) {
    case VTC_GRE_UDP:
    case VTC_GRE_RAW6:
    case VTC_RING:
        return wire_parse_gre(payload, length, copy);
    case VTC_VXLAN:
        return wire_parse_vxlan(payload, length, copy);
    case VTC_GRE_RAW4:
        return wire_skip_ipv4(payload, length, IPPROTO_GRE, &gre, &gre_length) && wire_parse_gre(gre, gre_length, copy);
    }
    return false;
}

void ingest(struct vtc_collector *collector, enum vtc_source kind, const uint8_t address[16], const uint8_t *payload, size_t length)
{
    struct vtc_counts *counts = &collector->receive_counts;
    struct wire_copy copy;
    struct wire_trailer trailer;
    bool key_known = false;
    COUNT(counts->datagrams, 1);
    if (length > MAX_FRAME || !parse(kind, payload, length, &copy)) {
        COUNT(counts->malformed, 1);
        return;
    }
    struct stream *stream = table_find(collector, copy.key, address, &key_known);
    if (!stream) {
        if (key_known)
            COUNT(counts->unannounced_address, 1);
        else
            COUNT(counts->unannounced_key, 1);
        return;
    }
    uint64_t time_ns = collector->real_ns;
    uint32_t original = copy.frame_length;
    if (stream->trailer) {
        if (!wire_take_trailer(&copy, &trailer)) {
            COUNT(counts->malformed, 1);
            return;
        }
        time_ns = trailer.tai_ns - (uint64_t)stream->node->tai_ns;
        original = trailer.original_length;
    }
    if (count_arrival(collector, stream, &copy))
        append(collector, stream, &copy, time_ns, original);
}

/* ---- time passing ---- */

static void settle_sequenced(struct vtc_collector *collector, struct stream_state *state, uint64_t next, uint64_t total)
{
    struct gaps *gaps = &state->gaps;
    uint64_t lost = 0;
    judge(state, JUDGING_LOSS);
    gaps_expect(gaps, total, &lost);
    lost += gaps_settle(gaps, next > total ? next : total);
    if (lost)
        count_lost(collector, state, lost);
    judge(state, JUDGING_NOTHING);
}

static void settle_counted(struct vtc_collector *collector, struct stream_state *state, uint64_t sent)
{
    const uint64_t known = state->received + state->lost_network + state->lost_socket;
    if (sent > known)
        count_lost(collector, state, sent - known);
}

void ingest_last_word(struct vtc_collector *collector, struct stream_state *state)
{
    if (state->sequenced)
        settle_sequenced(collector, state, state->gaps.next, state->total_next);
    else
        settle_counted(collector, state, state->total_sent);
}

static bool awaits(const struct stream_state *state)
{
    if (!state->sequenced)
        return state->total_sent > state->received + state->lost_network + state->lost_socket;
    return state->gaps.missing != 0 || state->total_next > state->gaps.next;
}

/* What is missing now and still is after the grace time, with the sockets read empty since, has been lost. */
static void tick_stream(struct vtc_collector *collector, struct stream *stream)
{
    const uint64_t grace = collector->config.grace_ns;
    struct stream_state *state = stream->state;
    if (stream->mark_ns && collector->drained_ns >= stream->mark_ns + grace) {
        if (state->sequenced)
            settle_sequenced(collector, state, stream->mark_next, stream->mark_total);
        else
            settle_counted(collector, state, stream->mark_sent);
        stream->mark_ns = 0;
    }
    if (!stream->mark_ns && awaits(state)) {
        stream->mark_ns = collector->now_ns;
        stream->mark_next = state->gaps.next;
        stream->mark_total = state->total_next;
        stream->mark_sent = state->total_sent;
    }
    if (stream->closing && !stream->mark_ns && collector->drained_ns >= stream->closing_ns + grace)
        table_remove(collector, stream);
}

static void tick_tap(struct vtc_collector *collector, struct tap *tap)
{
    const uint64_t interval = collector->config.rotate_ns;
    if (tap->section && interval && tap->packets && collector->now_ns - tap->started_ns >= interval)
        ingest_end_section(collector, tap);
}

void ingest_tick(struct vtc_collector *collector)
{
    ingest_overflow(collector, receive_refresh_drops(collector));
    collector->drops_fresh = true;
    for (uint32_t slot = 0; slot < collector->streams_used; slot++)
        if (collector->streams[slot].open)
            tick_stream(collector, &collector->streams[slot]);
    for (uint32_t index = 0; index < collector->taps_used; index++)
        if (collector->taps[index].in_use)
            tick_tap(collector, &collector->taps[index]);
    if (collector->overflow_pool && collector->now_ns - collector->pool_ns > POOL_AGE) {
        COUNT(collector->receive_counts.socket_unexplained, collector->overflow_pool);
        collector->overflow_pool = 0;
    }
}
