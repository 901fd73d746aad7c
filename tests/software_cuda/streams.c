/* Streams and events of the software CUDA driver.
 *
 * Each stream has a thread that does its work in order, beside the other streams. An idle stream starts late, on purpose, so that
 * a result which nobody waited for is not there. The default stream is simpler than CUDA's: its work is done when the call
 * returns.
 */

#define _GNU_SOURCE
#include "driver.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SPANS_MAX = 1 << 15, LATE_US = 1000 };

struct CUstream_st {
    CUstream next;
    unsigned number, flags;
    unsigned long submitted, completed;
    struct op *first, *last;
    int destroyed; /* by the program; it is freed when its work is done */
};

struct CUevent_st {
    CUevent next;
    unsigned flags;
    unsigned long recorded, completed; /* how often; it is ready when both are equal */
    uint64_t at_ns;
    unsigned long pending; /* operations that still use it */
    int destroyed;
};

struct span {
    uint64_t stream, start_ns, end_ns;
    const char *name;
};

static CUstream streams;
static CUevent events;
static unsigned streams_made, late_us = LATE_US;
static int held;
static struct span spans[SPANS_MAX];
static size_t spans_used;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* {{{ the thread of a stream */

static void done_with(CUevent event) {
    event->pending--;
    if (event->pending > 0 || !event->destroyed)
        return;
    CUevent *link = &events;
    while (*link != event)
        link = &(*link)->next;
    *link = event->next;
    free(event);
}

static void run(struct op *op) {
    switch (op->work) {
    case COPY:
    case FILL:
        if (sticky == CUDA_SUCCESS)
            run_memory_op(op);
        break;
    case HOST:
        if (sticky == CUDA_SUCCESS) {
            pthread_mutex_unlock(&lock);
            op->function(op->data);
            pthread_mutex_lock(&lock);
        }
        break;
    case RECORD:
        if (op->event->completed < op->ticket) {
            op->event->completed = op->ticket;
            op->event->at_ns = now_ns();
        }
        done_with(op->event);
        break;
    case WAIT:
        while (op->event->completed < op->ticket && sticky == CUDA_SUCCESS)
            pthread_cond_wait(&changed, &lock);
        done_with(op->event);
        break;
    }
}

static void run_first(CUstream stream) {
    struct op *op = stream->first;
    uint64_t start_ns = now_ns();
    run(op);
    if (spans_used < SPANS_MAX)
        spans[spans_used++] = (struct span){stream->number, start_ns, now_ns(), op->name};
    stream->first = op->next;
    if (!stream->first)
        stream->last = NULL;
    stream->completed++;
    free(op);
    pthread_cond_broadcast(&changed);
}

static void start_late(void) {
    unsigned us = late_us;
    pthread_mutex_unlock(&lock);
    usleep(us);
    pthread_mutex_lock(&lock);
}

static void *work(void *argument) {
    CUstream stream = argument;
    pthread_mutex_lock(&lock);
    while (stream->first || !stream->destroyed) {
        if (!stream->first) {
            pthread_cond_wait(&changed, &lock);
            continue;
        }
        start_late();
        while (stream->first) {
            while (held)
                pthread_cond_wait(&changed, &lock);
            run_first(stream);
        }
    }
    CUstream *link = &streams;
    while (*link != stream)
        link = &(*link)->next;
    *link = stream->next;
    free(stream);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* }}} */

static int is_live(CUstream stream) {
    for (CUstream each = streams; each; each = each->next)
        if (each == stream)
            return !each->destroyed;
    return 0;
}

static int is_event(CUevent event) {
    for (CUevent each = events; each; each = each->next)
        if (each == event)
            return !each->destroyed;
    return 0;
}

static CUresult no_handle(const char *name, const char *what) {
    violation("%s: this %s does not exist, or was destroyed before", name, what);
    return leave(CUDA_ERROR_INVALID_HANDLE);
}

CUresult queue(CUstream stream, struct op op) {
    if (!is_live(stream)) {
        violation("%s: this stream does not exist, or was destroyed before", op.name);
        return CUDA_ERROR_INVALID_HANDLE;
    }
    struct op *queued = malloc(sizeof *queued);
    *queued = op;
    queued->next = NULL;
    if (stream->last)
        stream->last->next = queued;
    else
        stream->first = queued;
    stream->last = queued;
    stream->submitted++;
    pthread_cond_broadcast(&changed);
    return CUDA_SUCCESS;
}

static int has_work(int all) {
    for (CUstream each = streams; each; each = each->next)
        if (each->first && (all || !(each->flags & CU_STREAM_NON_BLOCKING)))
            return 1;
    return 0;
}

void drain(int all) {
    while (has_work(all))
        pthread_cond_wait(&changed, &lock);
}

EXPORTED CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
    ENTER("cuStreamCreate", INITIALIZED | CONTEXT);
    CUstream made = calloc(1, sizeof *made);
    pthread_t thread;
    made->number = ++streams_made;
    made->flags = flags;
    made->next = streams;
    if (pthread_create(&thread, NULL, work, made) != 0) {
        free(made);
        return leave(CUDA_ERROR_OUT_OF_MEMORY);
    }
    pthread_detach(thread);
    streams = made;
    *stream = made;
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuStreamDestroy(CUstream stream) {
    ENTER("cuStreamDestroy", INITIALIZED | CONTEXT | CLEANUP);
    if (!is_live(stream))
        return no_handle("cuStreamDestroy", "stream");
    stream->destroyed = 1; /* never waits here: pycuda holds the interpreter's lock, which the work may need */
    pthread_cond_broadcast(&changed);
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuStreamSynchronize(CUstream stream) {
    ENTER("cuStreamSynchronize", INITIALIZED | CONTEXT);
    if (stream == NULL) {
        drain(0);
        return leave(sticky);
    }
    if (!is_live(stream))
        return no_handle("cuStreamSynchronize", "stream");
    unsigned long ticket = stream->submitted;
    while (is_live(stream) && stream->completed < ticket)
        pthread_cond_wait(&changed, &lock);
    return leave(sticky);
}

EXPORTED CUresult cuStreamQuery(CUstream stream) {
    ENTER("cuStreamQuery", INITIALIZED | CONTEXT);
    if (stream == NULL)
        return leave(has_work(0) ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS);
    if (!is_live(stream))
        return no_handle("cuStreamQuery", "stream");
    return leave(stream->first ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS);
}

EXPORTED CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags) {
    (void)flags;
    ENTER("cuStreamWaitEvent", INITIALIZED | CONTEXT);
    if (!is_event(event))
        return no_handle("cuStreamWaitEvent", "event");
    CUresult queued = queue(stream, (struct op){.name = "cuStreamWaitEvent", .work = WAIT, .event = event,
                                                .ticket = event->recorded});
    event->pending += queued == CUDA_SUCCESS;
    return leave(queued);
}

EXPORTED CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void *data) {
    ENTER("cuLaunchHostFunc", INITIALIZED | CONTEXT);
    return leave(queue(stream, (struct op){.name = "cuLaunchHostFunc", .work = HOST, .function = function, .data = data}));
}

EXPORTED CUresult cuEventCreate(CUevent *event, unsigned int flags) {
    ENTER("cuEventCreate", INITIALIZED | CONTEXT);
    CUevent made = calloc(1, sizeof *made);
    made->flags = flags;
    made->next = events;
    events = made;
    *event = made;
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuEventDestroy(CUevent event) {
    ENTER("cuEventDestroy", INITIALIZED | CONTEXT | CLEANUP);
    if (!is_event(event))
        return no_handle("cuEventDestroy", "event");
    event->destroyed = 1;
    event->pending++;
    done_with(event);
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuEventRecord(CUevent event, CUstream stream) {
    ENTER("cuEventRecord", INITIALIZED | CONTEXT);
    if (!is_event(event))
        return no_handle("cuEventRecord", "event");
    if (stream == NULL && has_work(0)) { /* it must not wait: pycuda holds the interpreter's lock, which the work may need */
        violation("cuEventRecord: this driver has no event on the default stream while other streams have work");
        return leave(CUDA_ERROR_NOT_SUPPORTED);
    }
    if (stream == NULL) {
        event->completed = ++event->recorded;
        event->at_ns = now_ns();
        return leave(CUDA_SUCCESS);
    }
    CUresult queued = queue(stream, (struct op){.name = "cuEventRecord", .work = RECORD, .event = event,
                                                .ticket = event->recorded + 1});
    if (queued == CUDA_SUCCESS)
        event->recorded++, event->pending++;
    return leave(queued);
}

static int is_ready(CUevent event) { return event->completed == event->recorded; }

EXPORTED CUresult cuEventQuery(CUevent event) {
    ENTER("cuEventQuery", INITIALIZED | CONTEXT);
    if (!is_event(event))
        return no_handle("cuEventQuery", "event");
    return leave(is_ready(event) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY);
}

EXPORTED CUresult cuEventSynchronize(CUevent event) {
    ENTER("cuEventSynchronize", INITIALIZED | CONTEXT);
    if (!is_event(event))
        return no_handle("cuEventSynchronize", "event");
    if (!(event->flags & CU_EVENT_BLOCKING_SYNC))
        count_call("cuEventSynchronize, spinning"); /* a GPU's driver would keep a core busy */
    while (is_event(event) && !is_ready(event) && sticky == CUDA_SUCCESS)
        pthread_cond_wait(&changed, &lock);
    return leave(sticky);
}

EXPORTED CUresult cuEventElapsedTime(float *ms, CUevent start, CUevent end) {
    ENTER("cuEventElapsedTime", INITIALIZED | CONTEXT);
    if (!is_event(start) || !is_event(end))
        return no_handle("cuEventElapsedTime", "event");
    if (!start->recorded || !end->recorded || ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING))
        return leave(CUDA_ERROR_INVALID_HANDLE);
    if (!is_ready(start) || !is_ready(end))
        return leave(CUDA_ERROR_NOT_READY);
    *ms = (float)((double)(int64_t)(end->at_ns - start->at_ns) / 1e6);
    return leave(CUDA_SUCCESS);
}

int live_streams(char *out, size_t room, size_t *used) {
    int count = 0;
    for (CUstream each = streams; each; each = each->next)
        if (!each->destroyed)
            count++, *used = append(out, room, *used, "stream %u\n", each->number);
    for (CUevent each = events; each; each = each->next)
        if (!each->destroyed)
            count++, *used = append(out, room, *used, "an event\n");
    return count;
}

void destroy_all_streams(void) {
    for (CUstream each = streams; each; each = each->next)
        each->destroyed = 1;
    for (CUevent each = events, next; each; each = next) {
        next = each->next;
        if (!each->destroyed) {
            each->destroyed = 1;
            each->pending++;
            done_with(each);
        }
    }
    pthread_cond_broadcast(&changed);
}

void reset_streams(void) {
    held = 0;
    late_us = LATE_US;
    pthread_cond_broadcast(&changed);
    drain(1);
    spans_used = 0;
    streams_made = 0;
}

/* {{{ what tests use */

/* How long an idle stream waits before it begins, in µs; 1000 after a reset. */
EXPORTED void soft_cuda_late(unsigned us) {
    pthread_mutex_lock(&lock);
    late_us = us;
    pthread_mutex_unlock(&lock);
}

/* While held, no stream begins another operation. */
EXPORTED void soft_cuda_hold(int hold) {
    pthread_mutex_lock(&lock);
    held = hold;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* What the streams did since the reset, in order of completion; returns how many spans there are. */
EXPORTED size_t soft_cuda_timeline(struct span *out, size_t room) {
    pthread_mutex_lock(&lock);
    size_t count = spans_used < room ? spans_used : room;
    memcpy(out, spans, count * sizeof *out);
    count = spans_used;
    pthread_mutex_unlock(&lock);
    return count;
}

/* }}} */
