/* Memory of the software CUDA driver.
 *
 * A device address lies in an arena that is mapped twice: the address that is handed out has no access rights, so a host that
 * reads it faults as it would with a GPU; the driver itself uses the second mapping. Addresses are not used again before
 * the arena is, so a stale one is always found. Fresh memory is full of 0xFF: NaN as floats. Pinned memory is unmapped when freed.
 */

#define _GNU_SOURCE
#include "driver.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <fcntl.h>
#include <unistd.h>

static const size_t ARENA_BYTES = (size_t)64 << 30, TOTAL_BYTES = (size_t)2 << 30, PAGE = 4096;

struct range {
    struct range *next;
    uintptr_t base;
    size_t bytes;
    enum kind kind;
    unsigned flags;
};

static struct range *ranges;
static char *arena, *shadow;
static size_t arena_used, device_bytes;
static int memory_file = -1;

static size_t pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

static int open_arena(void) {
    if (arena)
        return 1;
    memory_file = memfd_create("software-cuda", MFD_CLOEXEC);
    if (memory_file < 0 || ftruncate(memory_file, (off_t)ARENA_BYTES) != 0)
        return 0;
    void *handed_out = mmap(NULL, ARENA_BYTES, PROT_NONE, MAP_SHARED | MAP_NORESERVE, memory_file, 0);
    void *ours = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memory_file, 0);
    if (handed_out == MAP_FAILED || ours == MAP_FAILED)
        return 0;
    arena = handed_out, shadow = ours;
    return 1;
}

static struct range *find(uintptr_t address, size_t bytes, int kinds) {
    for (struct range *range = ranges; range; range = range->next)
        if ((range->kind & kinds) && address >= range->base && bytes <= range->bytes &&
            address - range->base <= range->bytes - bytes)
            return range;
    return NULL;
}

void *host_view(uintptr_t address, size_t bytes, int kinds) {
    struct range *range = find(address, bytes, kinds);
    if (!range)
        return NULL;
    return range->kind == DEVICE ? shadow + (address - (uintptr_t)arena) : (void *)address;
}

static void add(uintptr_t base, size_t bytes, enum kind kind, unsigned flags) {
    struct range *range = malloc(sizeof *range);
    *range = (struct range){ranges, base, bytes, kind, flags};
    ranges = range;
}

static void release(struct range *range) {
    if (range->kind == DEVICE) {
        device_bytes -= range->bytes;
        fallocate(memory_file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(range->base - (uintptr_t)arena),
                  (off_t)pages(range->bytes));
    } else if (range->kind == PINNED) {
        munmap((void *)range->base, pages(range->bytes));
    }
    struct range **link = &ranges;
    while (*link != range)
        link = &(*link)->next;
    *link = range->next;
    free(range);
}

static CUresult free_range(const char *name, uintptr_t base, enum kind kind) {
    struct range *range = find(base, 1, kind);
    if (!range || range->base != base) {
        violation("%s: 0x%zx is no allocation of this kind, or was freed before", name, (size_t)base);
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    release(range);
    return leave(CUDA_SUCCESS);
}

void free_all_memory(void) {
    while (ranges)
        release(ranges);
    arena_used = 0;
}

int live_memory(char *out, size_t room, size_t *used) {
    int count = 0;
    for (struct range *range = ranges; range; range = range->next, count++)
        *used = append(out, room, *used, "%zu bytes of %s memory\n", range->bytes,
                       range->kind == DEVICE ? "device" : range->kind == PINNED ? "pinned" : "registered");
    return count;
}

EXPORTED CUresult cuMemAlloc(CUdeviceptr *pointer, size_t bytes) {
    ENTER("cuMemAlloc", INITIALIZED | CONTEXT);
    if (bytes == 0)
        return leave(CUDA_ERROR_INVALID_VALUE);
    if (device_bytes + bytes > TOTAL_BYTES || arena_used + pages(bytes) > ARENA_BYTES || !open_arena())
        return leave(CUDA_ERROR_OUT_OF_MEMORY);
    *pointer = (CUdeviceptr)(uintptr_t)(arena + arena_used);
    memset(shadow + arena_used, 0xFF, bytes);
    arena_used += pages(bytes);
    device_bytes += bytes;
    add((uintptr_t)*pointer, bytes, DEVICE, 0);
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuMemFree(CUdeviceptr pointer) {
    ENTER("cuMemFree", INITIALIZED | CONTEXT | CLEANUP);
    return free_range("cuMemFree", (uintptr_t)pointer, DEVICE);
}

EXPORTED CUresult cuMemGetInfo(size_t *available, size_t *total) {
    ENTER("cuMemGetInfo", INITIALIZED | CONTEXT);
    *total = TOTAL_BYTES;
    *available = TOTAL_BYTES - device_bytes;
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuDeviceTotalMem(size_t *total, CUdevice device) {
    (void)device;
    ENTER("cuDeviceTotalMem", INITIALIZED | AFTER_ERRORS);
    *total = TOTAL_BYTES;
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuMemHostAlloc(void **pointer, size_t bytes, unsigned int flags) {
    ENTER("cuMemHostAlloc", INITIALIZED | CONTEXT);
    void *memory = mmap(NULL, pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == 0 || memory == MAP_FAILED)
        return leave(bytes == 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_OUT_OF_MEMORY);
    memset(memory, 0xFF, bytes);
    add((uintptr_t)memory, bytes, PINNED, flags);
    *pointer = memory;
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuMemFreeHost(void *pointer) {
    ENTER("cuMemFreeHost", INITIALIZED | CONTEXT | CLEANUP);
    return free_range("cuMemFreeHost", (uintptr_t)pointer, PINNED);
}

EXPORTED CUresult cuMemHostGetFlags(unsigned int *flags, void *pointer) {
    ENTER("cuMemHostGetFlags", INITIALIZED | CONTEXT);
    struct range *range = find((uintptr_t)pointer, 1, PINNED | REGISTERED);
    if (range)
        *flags = range->flags;
    return leave(range ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

EXPORTED CUresult cuMemHostRegister(void *pointer, size_t bytes, unsigned int flags) {
    ENTER("cuMemHostRegister", INITIALIZED | CONTEXT);
    if (bytes == 0)
        return leave(CUDA_ERROR_INVALID_VALUE);
    add((uintptr_t)pointer, bytes, REGISTERED, flags);
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuMemHostUnregister(void *pointer) {
    ENTER("cuMemHostUnregister", INITIALIZED | CONTEXT | CLEANUP);
    return free_range("cuMemHostUnregister", (uintptr_t)pointer, REGISTERED);
}

/* {{{ copies and fills; kinds 0 means host memory that the driver does not know */

static void *view(uintptr_t address, size_t bytes, int kinds) {
    return kinds == 0 ? (void *)address : host_view(address, bytes, kinds);
}

uint64_t fingerprint(const void *bytes, size_t count) {
    const unsigned char *next = bytes;
    uint64_t hash = count, word;
    for (; count >= sizeof word; count -= sizeof word, next += sizeof word) {
        memcpy(&word, next, sizeof word);
        hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 29;
    }
    for (; count > 0; count--, next++)
        hash = (hash ^ *next) * 0x9E3779B97F4A7C15u;
    return hash;
}

void run_memory_op(const struct op *op) {
    void *destination = view(op->destination, op->bytes, op->destination_kinds);
    const void *source = op->work == COPY ? view(op->source, op->bytes, op->source_kinds) : destination;
    if (!destination || !source) {
        violation("%s of %zu bytes: the memory was freed while the work was queued", op->name, op->bytes);
        break_device(CUDA_ERROR_ILLEGAL_ADDRESS);
    } else if (op->work == FILL) {
        for (size_t at = 0; at < op->bytes; at += op->pattern_bytes)
            memcpy((char *)destination + at, &op->pattern, op->pattern_bytes);
    } else {
        if ((op->source_kinds & PINNED) && fingerprint(source, op->bytes) != op->fingerprint)
            violation("%s of %zu bytes: the source was changed while the copy was queued", op->name, op->bytes);
        memmove(destination, source, op->bytes);
    }
}

static CUresult check_device(const char *name, CUdeviceptr pointer, size_t bytes) {
    if (host_view((uintptr_t)pointer, bytes, DEVICE))
        return CUDA_SUCCESS;
    violation("%s: %zu bytes at 0x%llx are not inside one device allocation", name, bytes, (unsigned long long)pointer);
    return CUDA_ERROR_INVALID_VALUE;
}

/* As the default stream: after all that the blocking streams were given, and done when it returns. */
static CUresult at_once(struct op op) {
    drain(0);
    if (sticky == CUDA_SUCCESS)
        run_memory_op(&op);
    return leave(sticky);
}

static CUresult submit(CUstream stream, struct op op) {
    if (stream == NULL)
        return at_once(op);
    return leave(queue(stream, op));
}

EXPORTED CUresult cuMemcpyHtoD(CUdeviceptr destination, const void *source, size_t bytes) {
    ENTER("cuMemcpyHtoD", INITIALIZED | CONTEXT);
    if (check_device("cuMemcpyHtoD", destination, bytes))
        return leave(CUDA_ERROR_INVALID_VALUE);
    return at_once((struct op){.name = "cuMemcpyHtoD", .work = COPY, .bytes = bytes, .destination = destination,
                               .destination_kinds = DEVICE, .source = (uintptr_t)source});
}

EXPORTED CUresult cuMemcpyDtoH(void *destination, CUdeviceptr source, size_t bytes) {
    ENTER("cuMemcpyDtoH", INITIALIZED | CONTEXT);
    if (check_device("cuMemcpyDtoH", source, bytes))
        return leave(CUDA_ERROR_INVALID_VALUE);
    return at_once((struct op){.name = "cuMemcpyDtoH", .work = COPY, .bytes = bytes, .destination = (uintptr_t)destination,
                               .source = source, .source_kinds = DEVICE});
}

static struct op device_copy(const char *name, CUdeviceptr destination, CUdeviceptr source, size_t bytes) {
    return (struct op){.name = name, .work = COPY, .bytes = bytes, .destination = destination, .destination_kinds = DEVICE,
                       .source = source, .source_kinds = DEVICE};
}

EXPORTED CUresult cuMemcpyDtoD(CUdeviceptr destination, CUdeviceptr source, size_t bytes) {
    ENTER("cuMemcpyDtoD", INITIALIZED | CONTEXT);
    if (check_device("cuMemcpyDtoD", destination, bytes) || check_device("cuMemcpyDtoD", source, bytes))
        return leave(CUDA_ERROR_INVALID_VALUE);
    return at_once(device_copy("cuMemcpyDtoD", destination, source, bytes));
}

EXPORTED CUresult cuMemcpyDtoDAsync(CUdeviceptr destination, CUdeviceptr source, size_t bytes, CUstream stream) {
    ENTER("cuMemcpyDtoDAsync", INITIALIZED | CONTEXT);
    if (check_device("cuMemcpyDtoDAsync", destination, bytes) || check_device("cuMemcpyDtoDAsync", source, bytes))
        return leave(CUDA_ERROR_INVALID_VALUE);
    return submit(stream, device_copy("cuMemcpyDtoDAsync", destination, source, bytes));
}

/* Memory that is not pinned is copied before the call returns, once the streams are done: CUDA may do just that. */
static int is_pinned(const char *name, const void *pointer, size_t bytes) {
    if (host_view((uintptr_t)pointer, bytes, PINNED | REGISTERED))
        return 1;
    violation("%s: %zu bytes of host memory are not pinned, so the copy is not asynchronous", name, bytes);
    return 0;
}

EXPORTED CUresult cuMemcpyHtoDAsync(CUdeviceptr destination, const void *source, size_t bytes, CUstream stream) {
    const char *name = "cuMemcpyHtoDAsync";
    ENTER(name, INITIALIZED | CONTEXT);
    if (check_device(name, destination, bytes))
        return leave(CUDA_ERROR_INVALID_VALUE);
    struct op op = {.name = name, .work = COPY, .bytes = bytes, .destination = destination, .destination_kinds = DEVICE,
                    .source = (uintptr_t)source};
    if (!is_pinned(name, source, bytes))
        return at_once(op);
    op.source_kinds = PINNED | REGISTERED;
    op.fingerprint = fingerprint(source, bytes);
    return submit(stream, op);
}

EXPORTED CUresult cuMemcpyDtoHAsync(void *destination, CUdeviceptr source, size_t bytes, CUstream stream) {
    const char *name = "cuMemcpyDtoHAsync";
    ENTER(name, INITIALIZED | CONTEXT);
    if (check_device(name, source, bytes))
        return leave(CUDA_ERROR_INVALID_VALUE);
    struct op op = {.name = name, .work = COPY, .bytes = bytes, .destination = (uintptr_t)destination, .source = source,
                    .source_kinds = DEVICE};
    if (!is_pinned(name, destination, bytes))
        return at_once(op);
    op.destination_kinds = PINNED | REGISTERED;
    memset(destination, 0xFF, bytes); /* who reads before the copy is done finds NaN, not the result of last time */
    return submit(stream, op);
}

static CUresult fill(const char *name, CUdeviceptr destination, uint32_t pattern, size_t pattern_bytes, size_t count,
                     CUstream stream) {
    ENTER(name, INITIALIZED | CONTEXT);
    if (check_device(name, destination, count * pattern_bytes))
        return leave(CUDA_ERROR_INVALID_VALUE);
    return submit(stream, (struct op){.name = name, .work = FILL, .bytes = count * pattern_bytes, .destination = destination,
                                      .destination_kinds = DEVICE, .pattern = pattern, .pattern_bytes = pattern_bytes});
}

EXPORTED CUresult cuMemsetD8(CUdeviceptr destination, unsigned char value, size_t count) {
    return fill("cuMemsetD8", destination, value, 1, count, NULL);
}

EXPORTED CUresult cuMemsetD32(CUdeviceptr destination, unsigned int value, size_t count) {
    return fill("cuMemsetD32", destination, value, 4, count, NULL);
}

EXPORTED CUresult cuMemsetD8Async(CUdeviceptr destination, unsigned char value, size_t count, CUstream stream) {
    return fill("cuMemsetD8Async", destination, value, 1, count, stream);
}

EXPORTED CUresult cuMemsetD32Async(CUdeviceptr destination, unsigned int value, size_t count, CUstream stream) {
    return fill("cuMemsetD32Async", destination, value, 4, count, stream);
}

/* }}} */

/* For work on a stream, a kernel's view: the memory behind a device address, or NULL and a lost device. */
EXPORTED void *soft_cuda_view(CUdeviceptr pointer, size_t bytes) {
    pthread_mutex_lock(&lock);
    void *found = host_view((uintptr_t)pointer, bytes, DEVICE);
    if (!found) {
        violation("a kernel used %zu bytes at 0x%llx that are not inside one device allocation", bytes,
                  (unsigned long long)pointer);
        break_device(CUDA_ERROR_ILLEGAL_ADDRESS);
    }
    pthread_mutex_unlock(&lock);
    return found;
}
