/* A few threads that sleep until there is work, and scratch memory that each owns. */
#ifndef SSL_THREADS_H
#define SSL_THREADS_H

#include <stddef.h>

/* Run work(argument) on up to `threads` threads at once, the caller among them, and wait for all.
 * `work` must take its share from a common counter: it may run on fewer threads than asked for. */
void ssl_parallel(void (*work)(void *), void *argument, int threads);

/* Memory of the calling thread, aligned to 64 bytes, NULL if there is none. It is held for the
 * next call, which may overwrite it. */
void *ssl_scratch(int slot, size_t bytes);

/* Let the processor breathe inside a short wait. */
void ssl_pause(unsigned *turns);

#endif
