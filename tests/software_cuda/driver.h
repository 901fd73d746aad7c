/* What the files of the software CUDA driver share. Every name here but `enter` is used with `lock` held. */

#include <cuda.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORTED __attribute__((visibility("default")))

extern pthread_mutex_t lock;
extern pthread_cond_t changed; /* broadcast whenever a stream gets on, or anything it may wait for changes */

/* What a call needs. A clean-up does its work even when it is told to fail: CUDA's clean-ups return errors of earlier work. */
enum { INITIALIZED = 1, CONTEXT = 2, CLEANUP = 4, AFTER_ERRORS = 8 };

/* Counts the call and takes `lock`; on failure (injected, sticky, no context) `lock` is free again. `leave` frees it. */
CUresult enter(const char *name, int needs);
CUresult leave(CUresult result);
#define ENTER(name, needs)                      \
    do {                                        \
        CUresult entered = enter(name, needs);  \
        if (entered != CUDA_SUCCESS)            \
            return entered;                     \
    } while (0)

/* state.c */
extern CUresult sticky; /* the error that every call returns from now on, or CUDA_SUCCESS */
void violation(const char *format, ...) __attribute__((format(printf, 1, 2)));
void count_call(const char *name);
void break_device(CUresult code);
size_t describe_live(char *out, size_t room);
size_t append(char *out, size_t room, size_t used, const char *format, ...) __attribute__((format(printf, 4, 5)));

/* memory.c */
enum kind { DEVICE = 1, PINNED = 2, REGISTERED = 4 };
void *host_view(uintptr_t address, size_t bytes, int kinds); /* NULL: not inside one allocation of those kinds */
int live_memory(char *out, size_t room, size_t *used);
void free_all_memory(void);

/* streams.c */
enum work { COPY, FILL, RECORD, WAIT, HOST };
struct op {
    struct op *next;
    enum work work;
    const char *name;
    uintptr_t destination, source;
    int destination_kinds, source_kinds;
    size_t bytes;
    uint64_t fingerprint; /* of a host source when it was queued */
    uint32_t pattern;
    size_t pattern_bytes;
    CUevent event;
    unsigned long ticket;
    CUhostFn function;
    void *data;
};
CUresult queue(CUstream stream, struct op op);
void run_memory_op(const struct op *op);
uint64_t fingerprint(const void *bytes, size_t count);
void drain(int all); /* waits for the blocking streams, as the default stream does, or for all */
int live_streams(char *out, size_t room, size_t *used);
void destroy_all_streams(void);
void reset_streams(void);
