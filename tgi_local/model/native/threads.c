#define _GNU_SOURCE
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#ifdef __x86_64__
#include <immintrin.h>
#define relax() _mm_pause()
#else
#define relax() ((void)0)
#endif

/* Barriers inside a run come microseconds apart, so waiting spins first. Where other programs want the core it gives
 * way after that, and a member that waits for a new run goes to sleep: a spinning one would take the core of the very
 * thread it waits for. */
#define SPINS_BEFORE_YIELD 4000
#define YIELDS_BEFORE_SLEEP 50
#define COUNTERS 4 /* a power of two: phases wrap around */

struct Team {
  int size;
  pthread_t *threads;
  void (*work)(void *, Member *);
  void *context;
  _Alignas(64) atomic_uint run;      /* number of the latest run */
  _Alignas(64) atomic_int arrived;  /* at the present barrier */
  _Alignas(64) atomic_uint phase;    /* barriers passed, all runs together */
  struct { _Alignas(64) atomic_int next; } counters[COUNTERS];
  atomic_int sleepers;
  atomic_int is_stopping;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
};

typedef struct {
  Team *team;
  int id;
} Start;

static void wait_until_changed(atomic_uint *value, unsigned old) {
  for (int spins = 0; atomic_load_explicit(value, memory_order_acquire) == old; spins++) {
    if (spins < SPINS_BEFORE_YIELD) relax();
    else sched_yield();
  }
}

static void wait_for_run(Team *team, unsigned seen) {
  for (int spins = 0; spins < SPINS_BEFORE_YIELD + YIELDS_BEFORE_SLEEP; spins++) {
    if (atomic_load_explicit(&team->run, memory_order_acquire) != seen) return;
    if (spins < SPINS_BEFORE_YIELD) relax();
    else sched_yield();
  }
  pthread_mutex_lock(&team->mutex);
  atomic_fetch_add(&team->sleepers, 1);
  while (atomic_load(&team->run) == seen) pthread_cond_wait(&team->wake, &team->mutex);
  atomic_fetch_sub(&team->sleepers, 1);
  pthread_mutex_unlock(&team->mutex);
}

void next_phase(Member *member) {
  Team *team = member->team;
  unsigned phase = member->phase;
  if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == team->size - 1) {
    /* Nobody works now: clear the counter that the phase after the next will use. */
    atomic_store_explicit(&team->counters[(phase + 2) % COUNTERS].next, 0, memory_order_relaxed);
    atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&team->phase, phase + 1, memory_order_release);
  } else {
    wait_until_changed(&team->phase, phase);
  }
  member->phase = phase + 1;
}

int next_piece(Member *member) {
  return atomic_fetch_add_explicit(&member->team->counters[member->phase % COUNTERS].next, 1,
                                   memory_order_relaxed);
}

static void take_part(Team *team, int id, unsigned phase) {
  Member member = {team, id, phase};
  team->work(team->context, &member);
  next_phase(&member);
}

static void *thread_main(void *argument) {
  Start start = *(Start *)argument;
  free(argument);
  Team *team = start.team;
  unsigned seen = 0;
  for (;;) {
    wait_for_run(team, seen);
    seen++;
    if (atomic_load(&team->is_stopping)) return NULL;
    take_part(team, start.id, atomic_load(&team->phase));
  }
}

Team *team_create(int num_threads) {
  Team *team = aligned_alloc(64, (sizeof(Team) + 63) / 64 * 64);
  if (!team) return NULL;
  *team = (Team){.size = 1};
  pthread_mutex_init(&team->mutex, NULL);
  pthread_cond_init(&team->wake, NULL);
  team->threads = calloc((size_t)num_threads, sizeof(pthread_t));
  for (int id = 1; id < num_threads; id++) {
    Start *start = malloc(sizeof(Start));
    *start = (Start){team, id};
    if (pthread_create(&team->threads[id], NULL, thread_main, start)) {
      free(start);
      break; /* the system gives no more: work with those there are */
    }
    team->size++;
  }
  return team;
}

int team_size(const Team *team) { return team->size; }

static void announce(Team *team) {
  atomic_fetch_add(&team->run, 1);
  if (atomic_load(&team->sleepers)) {
    pthread_mutex_lock(&team->mutex);
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->mutex);
  }
}

void team_run(Team *team, void (*work)(void *, Member *), void *context) {
  team->work = work;
  team->context = context;
  unsigned phase = atomic_load(&team->phase);
  announce(team);
  take_part(team, 0, phase);
}

void team_destroy(Team *team) {
  atomic_store(&team->is_stopping, 1);
  announce(team);
  for (int id = 1; id < team->size; id++) pthread_join(team->threads[id], NULL);
  free(team->threads);
  free(team);
}
