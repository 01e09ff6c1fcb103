#include "core.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int pool_init(struct pool *pool, uint32_t chunk_bytes, uint64_t bytes)
{
    pthread_mutex_init(&pool->lock, NULL);
    pool->chunk_bytes = chunk_bytes;
    pool->limit = (uint32_t)(bytes / chunk_bytes);
    pool->capacity = pool->limit + MAX_CONSUMERS * CONSUMER_ALLOWANCE;
    pool->free = calloc(pool->capacity, sizeof *pool->free);
    return pool->free ? 0 : -1;
}

/* What consumers may hold comes on top, so that a slow one never takes a chunk from the files. */
void pool_allow(struct pool *pool, int64_t chunks)
{
    pthread_mutex_lock(&pool->lock);
    pool->limit = (uint32_t)((int64_t)pool->limit + chunks);
    pthread_mutex_unlock(&pool->lock);
}

static void free_data(struct pool *pool, uint8_t *data) { munmap(data, pool->chunk_bytes); }

void pool_destroy(struct pool *pool)
{
    while (pool->free_count)
        free_data(pool, pool->free[--pool->free_count]);
    free(pool->free);
    pthread_mutex_destroy(&pool->lock);
}

static uint8_t *take_data(struct pool *pool)
{
    uint8_t *data = NULL;
    pthread_mutex_lock(&pool->lock);
    if (pool->free_count) {
        data = pool->free[--pool->free_count]; /* the last one used is the one in the cache */
    } else if (pool->allocated < pool->limit) {
        data = mmap(NULL, pool->chunk_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data == MAP_FAILED)
            data = NULL;
        else
            pool->allocated++;
    }
    pthread_mutex_unlock(&pool->lock);
    return data;
}

static void give_data(struct pool *pool, uint8_t *data)
{
    pthread_mutex_lock(&pool->lock);
    if (pool->allocated > pool->limit || pool->free_count == pool->capacity) {
        pool->allocated--;
        free_data(pool, data);
    } else {
        pool->free[pool->free_count++] = data;
    }
    pthread_mutex_unlock(&pool->lock);
}

static struct chunk *chunk_new(struct section *section, uint8_t *data, uint64_t now_ns)
{
    struct chunk *chunk = calloc(1, sizeof *chunk);
    if (!chunk)
        return NULL;
    atomic_init(&chunk->references, 1);
    atomic_fetch_add(&section->references, 1);
    chunk->section = section;
    chunk->data = data;
    chunk->born_ns = now_ns;
    return chunk;
}

struct chunk *chunk_take(struct pool *pool, struct section *section, uint64_t now_ns)
{
    uint8_t *data = take_data(pool);
    if (!data)
        return NULL;
    struct chunk *chunk = chunk_new(section, data, now_ns);
    if (!chunk)
        give_data(pool, data);
    return chunk;
}

struct chunk *chunk_end(struct section *section)
{
    struct chunk *chunk = chunk_new(section, NULL, 0);
    if (chunk)
        chunk->ends_section = true;
    return chunk;
}

void chunk_put(struct pool *pool, struct chunk *chunk)
{
    if (atomic_fetch_sub(&chunk->references, 1) != 1)
        return;
    if (chunk->data)
        give_data(pool, chunk->data);
    section_put(chunk->section);
    free(chunk);
}

struct section *section_new(struct tap *tap, uint64_t number)
{
    struct section *section = calloc(1, sizeof *section);
    if (!section)
        return NULL;
    atomic_init(&section->references, 1);
    pthread_mutex_init(&section->lock, NULL);
    section->tap = tap;
    section->number = number;
    return section;
}

int section_add(struct section *section, struct iface *iface)
{
    int index = -1;
    pthread_mutex_lock(&section->lock);
    if (section->count == section->capacity) {
        const uint32_t capacity = section->capacity ? section->capacity * 2 : 8;
        struct iface **grown = realloc(section->ifaces, capacity * sizeof *grown);
        if (!grown)
            goto out;
        section->ifaces = grown;
        section->capacity = capacity;
    }
    atomic_fetch_add(&iface->references, 1);
    index = (int)section->count;
    section->ifaces[section->count++] = iface;
out:
    pthread_mutex_unlock(&section->lock);
    return index;
}

struct iface *section_iface(struct section *section, uint32_t index)
{
    pthread_mutex_lock(&section->lock);
    struct iface *iface = index < section->count ? section->ifaces[index] : NULL;
    pthread_mutex_unlock(&section->lock);
    return iface;
}

void section_put(struct section *section)
{
    if (!section || atomic_fetch_sub(&section->references, 1) != 1)
        return;
    for (uint32_t index = 0; index < section->count; index++)
        iface_put(section->ifaces[index]);
    free(section->ifaces);
    pthread_mutex_destroy(&section->lock);
    free(section);
}

struct iface *iface_new(uint32_t slot, uint64_t uid, uint64_t opened_ns, const struct vtc_stream_info *info)
{
    uint8_t idb[MAX_IDB];
    const size_t length = pcapng_put_idb(idb, sizeof idb, info->name, info->description, info->snap_length);
    struct iface *iface = calloc(1, sizeof *iface + length);
    if (!iface)
        return NULL;
    atomic_init(&iface->references, 1);
    iface->slot = slot;
    iface->uid = uid;
    iface->opened_ns = opened_ns;
    iface->idb_length = (uint32_t)length;
    memcpy(iface->idb, idb, length);
    return iface;
}

void iface_put(struct iface *iface)
{
    if (iface && atomic_fetch_sub(&iface->references, 1) == 1)
        free(iface);
}
