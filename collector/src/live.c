/* Live consumers: each has a thread and a bounded queue of chunks that it shares with the writer. */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define STATISTICS_NS NS_PER_SECOND

static void refuse(struct consumer *consumer, const struct chunk *chunk)
{
    struct pcapng_block block;
    for (uint32_t at = 0; pcapng_read(chunk->data + at, chunk->used - at, &block) == PCAPNG_BLOCK; at += block.length) {
        const struct iface *iface = section_iface(chunk->section, block.interface);
        if (iface)
            consumer->dropped_by_slot[iface->slot]++;
    }
    consumer->dropped += chunk->packets;
}

static void offer(struct consumer *consumer, struct chunk *chunk)
{
    pthread_mutex_lock(&consumer->lock);
    if (consumer->queued == CONSUMER_CHUNKS || (consumer->queued && consumer->queued_bytes + chunk->used > CONSUMER_BYTES)) {
        refuse(consumer, chunk);
    } else {
        atomic_fetch_add(&chunk->references, 1);
        consumer->queue[(consumer->head + consumer->queued++) % CONSUMER_CHUNKS] = chunk;
        consumer->queued_bytes += chunk->used;
        pthread_cond_signal(&consumer->wake);
    }
    pthread_mutex_unlock(&consumer->lock);
}

void live_offer(struct vtc_collector *collector, struct tap *tap, struct chunk *chunk)
{
    for (int id = 0; id < MAX_CONSUMERS; id++) {
        struct consumer *consumer = &collector->consumers[id];
        if (atomic_load(&consumer->in_use) && !atomic_load(&consumer->stopping) && (!consumer->tap || consumer->tap == tap))
            offer(consumer, chunk);
    }
}

/* Waits for a chunk; NULL after a while without one. `queued_bytes` shrinks only when the chunk has been passed on. */
static struct chunk *next_chunk(struct consumer *consumer)
{
    struct timespec deadline;
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += 1;
    struct chunk *chunk = NULL;
    pthread_mutex_lock(&consumer->lock);
    while (!consumer->queued && !atomic_load(&consumer->stopping))
        if (pthread_cond_timedwait(&consumer->wake, &consumer->lock, &deadline) == ETIMEDOUT)
            break;
    if (consumer->queued) {
        chunk = consumer->queue[consumer->head];
        consumer->head = (consumer->head + 1) % CONSUMER_CHUNKS;
        consumer->queued--;
        consumer->queued_bytes -= chunk->used;
    }
    pthread_mutex_unlock(&consumer->lock);
    return chunk;
}

/* A stream of pods that come and go would number interfaces for ever: where there are too many, another section begins. What a
 * selection had taken of a time window is forgotten with the section. */
static uint32_t number_of(struct consumer *consumer, const struct iface *iface)
{
    struct outlet *outlet = &consumer->outlet;
    const uint32_t open = 2 * consumer->collector->config.max_streams;
    const uint32_t number = outlet_known(outlet, iface->uid);
    if (number == UINT32_MAX && outlet->interfaces >= (open > OUTLET_INTERFACES ? open : OUTLET_INTERFACES))
        outlet_header(outlet, outlet->config);
    return number != UINT32_MAX ? number : outlet_interface(outlet, iface->uid, iface->idb, iface->idb_length);
}

static void pass_on(struct consumer *consumer, struct chunk *chunk)
{
    struct outlet *outlet = &consumer->outlet;
    struct pcapng_block block;
    uint32_t known = UINT32_MAX, numbered = UINT32_MAX;
    for (uint32_t at = 0; !outlet_done(outlet) && pcapng_read(chunk->data + at, chunk->used - at, &block) == PCAPNG_BLOCK; at += block.length) {
        if (block.interface != known) {
            const struct iface *iface = section_iface(chunk->section, block.interface);
            known = block.interface;
            numbered = iface ? number_of(consumer, iface) : UINT32_MAX;
        }
        outlet_packet(outlet, numbered, &block);
    }
}

/* What this consumer lost by being slow is the system's drop in its own statistics, not in the file's. */
static void put_statistics(struct consumer *consumer)
{
    struct vtc_collector *collector = consumer->collector;
    uint8_t bytes[256];
    for (uint32_t slot = 0; slot < collector->config.max_streams; slot++) {
        pthread_mutex_lock(&consumer->lock);
        const uint64_t dropped = consumer->dropped_by_slot[slot];
        pthread_mutex_unlock(&consumer->lock);
        if (!dropped)
            continue;
        pthread_mutex_lock(&collector->table_lock);
        struct iface *iface = collector->streams[slot].iface;
        if (iface)
            atomic_fetch_add(&iface->references, 1);
        pthread_mutex_unlock(&collector->table_lock);
        if (!iface)
            continue;
        struct pcapng_statistics statistics;
        stream_statistics(&collector->stream_states[slot], &statistics);
        statistics.system_dropped = GET(collector->stream_states[slot].lost_socket) + dropped;
        statistics.delivered = statistics.accepted > statistics.system_dropped ? statistics.accepted - statistics.system_dropped : 0;
        const uint32_t number = number_of(consumer, iface);
        const size_t length = pcapng_put_isb(bytes, sizeof bytes, number, statistics.end_ns, &statistics);
        if (number != UINT32_MAX)
            outlet_put(&consumer->outlet, bytes, (uint32_t)length);
        iface_put(iface);
    }
}

static void put_known_interfaces(struct consumer *consumer)
{
    struct vtc_collector *collector = consumer->collector;
    for (uint32_t slot = 0; slot < collector->config.max_streams; slot++) {
        pthread_mutex_lock(&collector->table_lock);
        const struct stream *stream = &collector->streams[slot];
        struct iface *iface = stream->open && (!consumer->tap || stream->tap == consumer->tap) ? stream->iface : NULL;
        if (iface)
            atomic_fetch_add(&iface->references, 1);
        pthread_mutex_unlock(&collector->table_lock);
        if (iface) {
            number_of(consumer, iface);
            iface_put(iface);
        }
    }
}

static bool queue_empty(struct consumer *consumer)
{
    pthread_mutex_lock(&consumer->lock);
    const bool empty = consumer->queued == 0;
    pthread_mutex_unlock(&consumer->lock);
    return empty;
}

static uint64_t dropped_so_far(struct consumer *consumer)
{
    pthread_mutex_lock(&consumer->lock);
    const uint64_t dropped = consumer->dropped;
    pthread_mutex_unlock(&consumer->lock);
    return dropped;
}

static bool peer_gone(const struct outlet *outlet)
{
    char byte;
    return recv(outlet->fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 0;
}

static void *consumer_run(void *argument)
{
    struct consumer *consumer = argument;
    struct outlet *outlet = &consumer->outlet;
    uint64_t told_dropped = 0, told_ns = 0;
    pthread_setname_np(pthread_self(), "vtc-live");
    outlet_header(outlet, &consumer->collector->config);
    put_known_interfaces(consumer);
    outlet_flush(outlet);
    while (!outlet_done(outlet)) {
        struct chunk *chunk = next_chunk(consumer);
        if (!chunk && (atomic_load(&consumer->stopping) || peer_gone(outlet)))
            break;
        if (chunk) {
            pass_on(consumer, chunk);
            chunk_put(&consumer->collector->pool, chunk);
        }
        const uint64_t now_ns = clock_ns(CLOCK_MONOTONIC), dropped = dropped_so_far(consumer);
        if (dropped != told_dropped && now_ns - told_ns >= STATISTICS_NS) {
            put_statistics(consumer);
            told_dropped = dropped;
            told_ns = now_ns;
        }
        if (queue_empty(consumer))
            outlet_flush(outlet);
    }
    if (dropped_so_far(consumer) != told_dropped)
        put_statistics(consumer);
    outlet_flush(outlet);
    atomic_store(&consumer->stopping, true); /* no more chunks, please */
    shutdown(outlet->fd, SHUT_WR);
    PUT(outlet->counts.finished, 1);
    return NULL;
}

static int start(struct consumer *consumer, uint32_t streams, char *error, size_t error_size)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&consumer->lock, NULL);
    pthread_cond_init(&consumer->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    consumer->head = consumer->queued = 0;
    consumer->queued_bytes = consumer->dropped = 0;
    atomic_store(&consumer->stopping, false);
    consumer->dropped_by_slot = calloc(streams, sizeof *consumer->dropped_by_slot);
    if (!consumer->dropped_by_slot)
        return fail(error, error_size, "out of memory");
    if (pthread_create(&consumer->thread, NULL, consumer_run, consumer) != 0) {
        free(consumer->dropped_by_slot);
        consumer->dropped_by_slot = NULL;
        return fail(error, error_size, "cannot start another thread");
    }
    return 0;
}

static int free_consumer(const struct vtc_collector *collector)
{
    for (int id = 0; id < MAX_CONSUMERS; id++)
        if (!atomic_load(&collector->consumers[id].in_use) && !collector->consumers[id].dropped_by_slot)
            return id;
    return -1;
}

int vtc_live_open(struct vtc_collector *collector, uint32_t tap, const struct vtc_select *select, int fd, char *error, size_t error_size)
{
    if (tap != VTC_NO_TAP && tap >= collector->config.max_taps)
        return fail(error, error_size, "no such tap");
    pthread_mutex_lock(&collector->table_lock);
    const int id = free_consumer(collector);
    pthread_mutex_unlock(&collector->table_lock);
    if (id < 0)
        return fail(error, error_size, "at most %d live consumers at a time", MAX_CONSUMERS);
    struct consumer *consumer = &collector->consumers[id];
    if (outlet_init(&consumer->outlet, fd, select, error, error_size) < 0)
        return -1;
    consumer->collector = collector;
    consumer->id = id;
    consumer->tap = tap == VTC_NO_TAP ? NULL : &collector->taps[tap];
    if (start(consumer, collector->config.max_streams, error, error_size) < 0) {
        consumer->outlet.fd = -1;
        outlet_destroy(&consumer->outlet);
        return -1;
    }
    pool_allow(&collector->pool, CONSUMER_ALLOWANCE);
    pthread_mutex_lock(&collector->table_lock);
    if (consumer->tap)
        consumer->tap->consumers++;
    collector->consumer_count++;
    atomic_store(&consumer->in_use, true);
    pthread_mutex_unlock(&collector->table_lock);
    return id;
}

int vtc_live_counts(struct vtc_collector *collector, int id, struct vtc_consumer_counts *counts)
{
    if (id < 0 || id >= MAX_CONSUMERS || !atomic_load(&collector->consumers[id].in_use))
        return -1;
    struct consumer *consumer = &collector->consumers[id];
    const struct vtc_consumer_counts *own = &consumer->outlet.counts;
    *counts = (struct vtc_consumer_counts){
        .offered = GET(own->offered),
        .selected = GET(own->selected),
        .bytes = GET(own->bytes),
        .finished = GET(own->finished),
        .dropped = dropped_so_far(consumer),
    };
    return 0;
}

void vtc_live_close(struct vtc_collector *collector, int id)
{
    if (id < 0 || id >= MAX_CONSUMERS)
        return;
    struct consumer *consumer = &collector->consumers[id];
    if (!atomic_exchange(&consumer->in_use, false))
        return; /* closed already, or by somebody else at this moment */
    pthread_mutex_lock(&collector->table_lock);
    if (consumer->tap)
        consumer->tap->consumers--;
    collector->consumer_count--;
    pthread_mutex_unlock(&collector->table_lock);
    pthread_mutex_lock(&consumer->lock);
    atomic_store(&consumer->stopping, true);
    pthread_cond_signal(&consumer->wake);
    pthread_mutex_unlock(&consumer->lock);
    shutdown(consumer->outlet.fd, SHUT_RDWR); /* ends a send that waits for a slow reader */
    pthread_join(consumer->thread, NULL);
    while (consumer->queued) {
        chunk_put(&collector->pool, consumer->queue[consumer->head]);
        consumer->head = (consumer->head + 1) % CONSUMER_CHUNKS;
        consumer->queued--;
    }
    pool_allow(&collector->pool, -(int64_t)CONSUMER_ALLOWANCE);
    outlet_destroy(&consumer->outlet);
    pthread_mutex_destroy(&consumer->lock);
    pthread_cond_destroy(&consumer->wake);
    free(consumer->dropped_by_slot);
    consumer->dropped_by_slot = NULL;
}
