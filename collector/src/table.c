#include "core.h"

#include <stdlib.h>
#include <string.h>

static uint32_t bucket_of(const struct vtc_collector *collector, uint32_t key)
{
    return (key * 2654435761u) >> 7 & collector->bucket_mask;
}

static bool node_has(const struct node *node, const uint8_t address[16])
{
    for (uint32_t index = 0; index < node->addresses; index++)
        if (memcmp(node->address[index], address, 16) == 0)
            return true;
    return false;
}

/* Two nodes may use the same key: the address decides. Of one node's, the newest incarnation is meant. */
struct stream *table_find(struct vtc_collector *collector, uint32_t key, const uint8_t address[16], bool *key_known)
{
    struct stream *cached = collector->cached;
    if (cached && cached->key == key && memcmp(collector->cached_address, address, 16) == 0)
        return cached;
    *key_known = false;
    for (struct stream *stream = collector->buckets[bucket_of(collector, key)]; stream; stream = stream->next) {
        if (stream->key != key)
            continue;
        *key_known = true;
        if (node_has(stream->node, address)) {
            collector->cached = stream;
            memcpy(collector->cached_address, address, 16);
            return stream;
        }
    }
    return NULL;
}

static void table_insert(struct vtc_collector *collector, struct stream *stream)
{
    struct stream **bucket = &collector->buckets[bucket_of(collector, stream->key)];
    stream->next = *bucket;
    *bucket = stream;
    collector->cached = NULL;
}

void table_remove(struct vtc_collector *collector, struct stream *stream)
{
    for (struct stream **at = &collector->buckets[bucket_of(collector, stream->key)]; *at; at = &(*at)->next)
        if (*at == stream) {
            *at = stream->next;
            break;
        }
    collector->cached = NULL;
    stream->open = stream->closing = false;
    if (--stream->tap->streams == 0)
        ingest_end_section(collector, stream->tap);
}

int vtc_node_set(struct vtc_collector *collector, uint32_t node, const uint8_t *addresses, uint32_t count, int64_t tai_offset)
{
    if (node >= collector->config.max_nodes || count > VTC_ADDRESSES)
        return -1;
    pthread_mutex_lock(&collector->table_lock);
    struct node *entry = &collector->nodes[node];
    entry->addresses = count;
    memcpy(entry->address, addresses, (size_t)count * 16);
    entry->tai_ns = tai_offset * (int64_t)NS_PER_SECOND;
    collector->cached = NULL;
    pthread_mutex_unlock(&collector->table_lock);
    return 0;
}

static void tap_state_init(struct tap_state *state, const char *tap_namespace, const char *name)
{
    if (state->in_use && strcmp(state->tap_namespace, tap_namespace) == 0 && strcmp(state->name, name) == 0)
        return; /* known from before a restart: its files go on being numbered */
    memset(state, 0, sizeof *state);
    strncpy(state->tap_namespace, tap_namespace, sizeof state->tap_namespace - 1);
    strncpy(state->name, name, sizeof state->name - 1);
    state->in_use = 1;
}

int vtc_tap_open(struct vtc_collector *collector, uint32_t index, const char *tap_namespace, const char *name)
{
    if (index >= collector->config.max_taps || strlen(tap_namespace) >= NAMESPACE_SIZE || strlen(name) >= TAP_NAME_SIZE)
        return -1;
    pthread_mutex_lock(&collector->table_lock);
    struct tap *tap = &collector->taps[index];
    if (!tap->in_use) {
        *tap = (struct tap){.index = index, .in_use = true, .state = &collector->tap_states[index], .file.fd = -1};
        tap_state_init(tap->state, tap_namespace, name);
        if (index >= collector->taps_used)
            collector->taps_used = index + 1;
    }
    pthread_mutex_unlock(&collector->table_lock);
    return 0;
}

int vtc_tap_release(struct vtc_collector *collector, uint32_t index)
{
    if (index >= collector->config.max_taps)
        return -1;
    pthread_mutex_lock(&collector->table_lock);
    struct tap *tap = &collector->taps[index];
    const bool busy = tap->in_use && (tap->streams || tap->consumers || tap->section || tap->chunk || tap->dirty || atomic_load(&tap->file_open));
    if (!busy && tap->in_use) {
        tap->in_use = false;
        tap->state->in_use = 0;
    }
    pthread_mutex_unlock(&collector->table_lock);
    return busy ? -1 : 0;
}

int vtc_tap_file(struct vtc_collector *collector, uint32_t index, char *name, size_t size)
{
    if (index >= collector->config.max_taps || size == 0)
        return -1;
    const struct tap_state *state = &collector->tap_states[index];
    name[0] = 0;
    if (state->in_use && GET(state->file_open))
        strncat(name, state->file, size - 1);
    return 0;
}

static bool resumes(const struct stream_state *state, const struct vtc_stream_info *info)
{
    return state->in_use && state->key == info->key && state->incarnation == info->incarnation;
}

static void stream_state_init(struct stream_state *state, const struct vtc_stream_info *info)
{
    memset(state, 0, sizeof *state);
    state->key = info->key;
    state->incarnation = info->incarnation;
    state->tap = info->tap;
    state->sequenced = info->trailer != 0;
    state->opened_ns = clock_ns(CLOCK_REALTIME);
    state->in_use = 1;
}

static int open_locked(struct vtc_collector *collector, struct stream *stream, const struct vtc_stream_info *info)
{
    struct stream_state *state = &collector->stream_states[stream->slot];
    const int resumed = resumes(state, info);
    if (!resumed)
        stream_state_init(state, info);
    const uint64_t uid = ++collector->next_uid;
    struct iface *iface = iface_new(stream->slot, uid, state->opened_ns, info);
    if (!iface)
        return -1;
    iface_put(stream->iface);
    *stream = (struct stream){
        .slot = stream->slot,
        .key = info->key,
        .uid = uid,
        .state = state,
        .tap = &collector->taps[info->tap],
        .node = &collector->nodes[info->node],
        .iface = iface,
        .direction = info->direction,
        .snap_length = info->snap_length,
        .trailer = info->trailer != 0,
        .open = true,
    };
    stream->tap->streams++;
    table_insert(collector, stream);
    return resumed;
}

int vtc_stream_open(struct vtc_collector *collector, uint32_t slot, const struct vtc_stream_info *info, char *error, size_t error_size)
{
    const struct vtc_config *config = &collector->config;
    if (slot >= config->max_streams || info->tap >= config->max_taps || info->node >= config->max_nodes)
        return fail(error, error_size, "stream, tap or node number out of range");
    pthread_mutex_lock(&collector->table_lock);
    struct stream *stream = &collector->streams[slot];
    stream->slot = slot;
    if (slot >= collector->streams_used)
        collector->streams_used = slot + 1;
    int result;
    if (!collector->taps[info->tap].in_use) {
        result = fail(error, error_size, "tap %u is not open", info->tap);
    } else {
        if (stream->open)
            table_remove(collector, stream);
        result = open_locked(collector, stream, info);
        if (result < 0)
            fail(error, error_size, "out of memory");
    }
    pthread_mutex_unlock(&collector->table_lock);
    return result;
}

int vtc_stream_close(struct vtc_collector *collector, uint32_t slot)
{
    if (slot >= collector->config.max_streams)
        return -1;
    pthread_mutex_lock(&collector->table_lock);
    struct stream *stream = &collector->streams[slot];
    if (stream->open && !stream->closing) {
        stream->closing = true;
        stream->closing_ns = clock_ns(CLOCK_MONOTONIC);
    }
    pthread_mutex_unlock(&collector->table_lock);
    return 0;
}

static bool settled(const struct stream_state *state)
{
    const uint64_t fate = GET(state->stored) + GET(state->dropped_disk) + GET(state->dropped_crash) + state->dropped_slow;
    return state->received == fate;
}

int vtc_stream_release(struct vtc_collector *collector, uint32_t slot)
{
    if (slot >= collector->config.max_streams)
        return -1;
    int result = -1;
    pthread_mutex_lock(&collector->table_lock);
    struct stream *stream = &collector->streams[slot];
    struct stream_state *state = &collector->stream_states[slot];
    if (!stream->open && (!stream->state || settled(state))) {
        iface_put(stream->iface);
        *stream = (struct stream){.slot = slot};
        state->in_use = 0;
        result = 0;
    }
    pthread_mutex_unlock(&collector->table_lock);
    return result;
}

/* The number that the sender uses next, 0 where it does not tell. Until something arrives, what it has sent is the only clue to
 * the upper half. */
static uint64_t announced_next(const struct gaps *gaps, uint64_t sent, uint32_t next_sequence)
{
    if (next_sequence == 0) /* somebody else numbers the copies; a stream that has just wrapped tells the next time */
        return 0;
    if (gaps->next == 0) {
        const uint64_t next = gaps_nearest(sent, next_sequence);
        return next == UINT64_MAX ? next_sequence : next;
    }
    const uint64_t next = gaps_extend(gaps, next_sequence);
    return next == UINT64_MAX ? 0 : next;
}

int vtc_stream_totals(struct vtc_collector *collector, uint32_t slot, uint64_t sent, uint32_t next_sequence)
{
    if (slot >= collector->config.max_streams)
        return -1;
    pthread_mutex_lock(&collector->table_lock);
    struct stream_state *state = &collector->stream_states[slot];
    const bool known = state->in_use != 0;
    if (known) {
        const uint64_t next = announced_next(&state->gaps, sent, next_sequence);
        if (next > state->total_next)
            PUT(state->total_next, next);
        if (sent > state->total_sent)
            PUT(state->total_sent, sent);
        if (!collector->streams[slot].open)
            ingest_last_word(collector, state);
    }
    pthread_mutex_unlock(&collector->table_lock);
    return known ? 0 : -1;
}

static uint64_t in_flight(const struct stream_state *state)
{
    if (!state->sequenced) {
        const uint64_t known = state->received + state->lost_network + state->lost_socket;
        return state->total_sent > known ? state->total_sent - known : 0;
    }
    const uint64_t tail = state->total_next > state->gaps.next ? state->total_next - state->gaps.next : 0;
    return state->gaps.missing + tail;
}

int vtc_stream_counts(struct vtc_collector *collector, uint32_t slot, struct vtc_stream_counts *counts)
{
    if (slot >= collector->config.max_streams)
        return -1;
    pthread_mutex_lock(&collector->table_lock); /* so that the receive thread's terms belong together */
    const struct stream_state *state = &collector->stream_states[slot];
    *counts = (struct vtc_stream_counts){
        .received = state->received,
        .received_bytes = state->received_bytes,
        .lost_network = state->lost_network,
        .lost_socket = state->lost_socket,
        .stored = GET(state->stored),
        .dropped_disk = GET(state->dropped_disk),
        .dropped_slow = state->dropped_slow,
        .dropped_crash = GET(state->dropped_crash),
        .duplicate = state->duplicate,
        .late = state->late,
        .in_flight = in_flight(state),
        .next_sequence = state->gaps.next,
        .closed = !collector->streams[slot].open,
    };
    pthread_mutex_unlock(&collector->table_lock);
    return 0;
}
