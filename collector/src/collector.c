#include "core.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

uint32_t vtc_abi(void) { return VTC_ABI; }

uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

int fail(char *error, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error, size, format, arguments);
    va_end(arguments);
    return -1;
}

static uint32_t buckets_for(uint32_t streams)
{
    uint32_t buckets = 64;
    while (buckets < streams * 2)
        buckets *= 2;
    return buckets;
}

static int allocate(struct vtc_collector *collector, char *error, size_t error_size)
{
    const struct vtc_config *config = &collector->config;
    const uint32_t buckets = buckets_for(config->max_streams);
    collector->bucket_mask = buckets - 1;
    collector->buckets = calloc(buckets, sizeof *collector->buckets);
    collector->streams = calloc(config->max_streams, sizeof *collector->streams);
    collector->taps = calloc(config->max_taps, sizeof *collector->taps);
    collector->nodes = calloc(config->max_nodes, sizeof *collector->nodes);
    if (!collector->buckets || !collector->streams || !collector->taps || !collector->nodes ||
        pool_init(&collector->pool, config->chunk_bytes, config->buffer_bytes) < 0)
        return fail(error, error_size, "out of memory");
    return 0;
}

static void init_locks(struct vtc_collector *collector)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&collector->table_lock, NULL);
    pthread_mutex_init(&collector->queue_lock, NULL);
    pthread_cond_init(&collector->queue_wake, &attributes);
    pthread_cond_init(&collector->looked, &attributes);
    pthread_condattr_destroy(&attributes);
}

static int check(const struct vtc_config *config, char *error, size_t error_size)
{
    if (config->chunk_bytes < pcapng_epb_length(MAX_FRAME) || config->chunk_bytes % 4096)
        return fail(error, error_size, "a chunk must hold the longest packet and be a multiple of 4096 bytes");
    if (config->buffer_bytes < 4ull * config->chunk_bytes)
        return fail(error, error_size, "the buffer must hold at least 4 chunks of %u bytes", config->chunk_bytes);
    if (!config->max_streams || !config->max_taps || !config->max_nodes || config->max_streams > 1u << 20 || config->max_taps > 1u << 20)
        return fail(error, error_size, "the numbers of streams, taps and nodes must lie between 1 and %u", 1u << 20);
    if (!config->rotate_interfaces || config->rotate_interfaces > 1u << 20)
        return fail(error, error_size, "a file's interfaces must lie between 1 and %u", 1u << 20);
    return 0;
}

static void copy_texts(struct vtc_collector *collector, const struct vtc_config *config)
{
    collector->config.hardware = strdup(config->hardware);
    collector->config.os = strdup(config->os);
    collector->config.application = strdup(config->application);
}

struct vtc_collector *vtc_open(const struct vtc_config *config, char *error, size_t error_size)
{
    if (check(config, error, error_size) < 0)
        return NULL;
    struct vtc_collector *collector = aligned_alloc(64, (sizeof *collector + 63) / 64 * 64);
    if (!collector) {
        fail(error, error_size, "out of memory");
        return NULL;
    }
    memset(collector, 0, sizeof *collector);
    collector->config = *config;
    collector->state_fd = collector->wake = -1;
    collector->allowed_bytes = UINT64_MAX;
    copy_texts(collector, config);
    init_locks(collector);
    if (allocate(collector, error, error_size) < 0 || state_open(collector, error, error_size) < 0) {
        vtc_free(collector);
        return NULL;
    }
    state_recover(collector);
    collector->now_ns = clock_ns(CLOCK_MONOTONIC);
    collector->real_ns = clock_ns(CLOCK_REALTIME);
    return collector;
}

int vtc_start(struct vtc_collector *collector, char *error, size_t error_size)
{
    if (pthread_create(&collector->writer, NULL, writer_run, collector) != 0)
        return fail(error, error_size, "cannot start a thread");
    collector->writer_started = true;
    if (pthread_create(&collector->receiver, NULL, receive_run, collector) != 0)
        return fail(error, error_size, "cannot start a thread");
    collector->receiver_started = true;
    return 0;
}

static void end_sections(struct vtc_collector *collector)
{
    pthread_mutex_lock(&collector->table_lock);
    for (uint32_t index = 0; index < collector->taps_used; index++)
        if (collector->taps[index].in_use)
            ingest_end_section(collector, &collector->taps[index]);
    pthread_mutex_unlock(&collector->table_lock);
}

void vtc_stop(struct vtc_collector *collector)
{
    atomic_store(&collector->stopping, true);
    if (collector->receiver_started)
        pthread_join(collector->receiver, NULL);
    collector->receiver_started = false;
    end_sections(collector);
    for (int id = 0; id < MAX_CONSUMERS; id++)
        vtc_live_close(collector, id);
    pthread_mutex_lock(&collector->queue_lock);
    atomic_store(&collector->writer_stopping, true);
    pthread_cond_signal(&collector->queue_wake);
    pthread_mutex_unlock(&collector->queue_lock);
    if (collector->writer_started)
        pthread_join(collector->writer, NULL);
    collector->writer_started = false;
    writer_drain(collector);
    state_stopped(collector);
}

void vtc_free(struct vtc_collector *collector)
{
    receive_close(collector);
    if (collector->streams)
        for (uint32_t slot = 0; slot < collector->config.max_streams; slot++)
            iface_put(collector->streams[slot].iface);
    if (collector->taps)
        for (uint32_t index = 0; index < collector->config.max_taps; index++) {
            if (collector->taps[index].chunk)
                chunk_put(&collector->pool, collector->taps[index].chunk);
            section_put(collector->taps[index].section);
        }
    if (collector->pool.free)
        pool_destroy(&collector->pool);
    state_close(collector);
    free(collector->buckets);
    free(collector->streams);
    free(collector->taps);
    free(collector->nodes);
    free((void *)(uintptr_t)collector->config.hardware);
    free((void *)(uintptr_t)collector->config.os);
    free((void *)(uintptr_t)collector->config.application);
    pthread_mutex_destroy(&collector->table_lock);
    pthread_mutex_destroy(&collector->queue_lock);
    pthread_cond_destroy(&collector->queue_wake);
    pthread_cond_destroy(&collector->looked);
    free(collector);
}

void vtc_counts(struct vtc_collector *collector, struct vtc_counts *counts)
{
    const struct vtc_counts *received = &collector->receive_counts, *written = &collector->write_counts;
    pthread_mutex_lock(&collector->pool.lock);
    const uint64_t allocated = collector->pool.allocated, used = allocated - collector->pool.free_count;
    pthread_mutex_unlock(&collector->pool.lock);
    *counts = (struct vtc_counts){
        .datagrams = GET(received->datagrams),
        .unannounced_key = GET(received->unannounced_key),
        .unannounced_address = GET(received->unannounced_address),
        .malformed = GET(received->malformed),
        .socket_overflow = GET(received->socket_overflow),
        .socket_unexplained = GET(received->socket_unexplained),
        .receive_errors = GET(received->receive_errors),
        .receive_batches = GET(received->receive_batches),
        .write_errors = GET(written->write_errors),
        .last_write_error = GET(written->last_write_error),
        .chunks_used = used,
        .chunks_allocated = allocated,
        .files_opened = GET(written->files_opened),
        .captured = GET(received->captured),
        .wakeups = GET(received->wakeups),
        .ring_outages = GET(received->ring_outages),
        .rings_down = GET(received->rings_down),
        .written_bytes = GET(written->written_bytes),
    };
}
