#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { MAX_WORKERS = 255, SLOTS = 2, SPINS = 4096 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards all below */
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER, finished = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t one_job = PTHREAD_MUTEX_INITIALIZER;
static int workers, places, waiting_caller;
static atomic_int active;
static unsigned long generation;
static void (*job)(void *);
static void *job_argument;

static void *worker(void *unused) {
    (void)unused;
    unsigned long seen = 0;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (places == 0 || generation == seen) pthread_cond_wait(&wake, &lock);
        seen = generation;
        places--;
        atomic_fetch_add(&active, 1);
        void (*work)(void *) = job;
        void *argument = job_argument;
        pthread_mutex_unlock(&lock);
        work(argument);
        pthread_mutex_lock(&lock);
        if (atomic_fetch_sub(&active, 1) == 1 && waiting_caller) pthread_cond_signal(&finished);
    }
    return NULL;
}

/* A child process has no workers and may have inherited locks that nobody will open. */
static void after_fork(void) {
    lock = one_job = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    wake = finished = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    workers = places = waiting_caller = 0;
    atomic_store(&active, 0);
}

/* Start workers until there are `count`, or as many as the system grants. Call with `lock` held. */
static void start_workers(int count) {
    sigset_t all, before;
    sigfillset(&all); /* signals are for the program's own threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (workers < count) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, NULL)) break;
        pthread_detach(thread);
        workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void ssl_parallel(void (*work)(void *), void *argument, int threads) {
    if (threads > MAX_WORKERS) threads = MAX_WORKERS;
    if (threads < 2 || pthread_mutex_trylock(&one_job)) { /* another thread's job has the workers */
        work(argument);
        return;
    }
    pthread_mutex_lock(&lock);
    start_workers(threads - 1);
    job = work;
    job_argument = argument;
    places = threads - 1;
    generation++;
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
    work(argument);
    pthread_mutex_lock(&lock);
    places = 0; /* who has not come yet need not come */
    pthread_mutex_unlock(&lock);
    for (unsigned turns = 0; atomic_load(&active) && turns < SPINS;) ssl_pause(&turns);
    pthread_mutex_lock(&lock);
    waiting_caller = 1;
    while (atomic_load(&active)) pthread_cond_wait(&finished, &lock);
    waiting_caller = 0;
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&one_job);
}

void ssl_pause(unsigned *turns) {
    if (++*turns % 1024 == 0) sched_yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

typedef struct { void *memory; size_t bytes; } Scratch;

static pthread_key_t scratch_key;

static void release(void *all) {
    for (int i = 0; i < SLOTS; i++) free(((Scratch *)all)[i].memory);
    free(all);
}

/* Runs when the library is loaded. */
static __attribute__((constructor)) void set_up(void) {
    pthread_key_create(&scratch_key, release);
    pthread_atfork(NULL, NULL, after_fork);
}

void *ssl_scratch(int slot, size_t bytes) {
    Scratch *all = pthread_getspecific(scratch_key);
    if (!all) {
        all = calloc(SLOTS, sizeof(Scratch));
        if (!all || pthread_setspecific(scratch_key, all)) {
            free(all);
            return NULL;
        }
    }
    if (all[slot].bytes < bytes) {
        free(all[slot].memory);
        all[slot].bytes = 0;
        if (posix_memalign(&all[slot].memory, 64, bytes)) all[slot].memory = NULL;
        else all[slot].bytes = bytes;
    }
    return all[slot].bytes >= bytes ? all[slot].memory : NULL;
}
