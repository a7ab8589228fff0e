#define _GNU_SOURCE
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#ifdef __x86_64__
#include <immintrin.h>
#define relax() _mm_pause()
#else
#define relax() ((void)0)
#endif

/* Phases take microseconds, so waiting spins first. Then it gives way, or it might keep the very thread that it waits
 * for off this core; and who waits for a new run goes to sleep in the end. */
#define SPINS_BEFORE_YIELD 2000
#define YIELDS_BEFORE_SLEEP 50

struct Team {
  int size;
  pthread_t *threads;
  void (*work)(void *, Member *);
  void *context;
  unsigned first_phase;
  _Alignas(64) atomic_uint run;          /* number of the latest run */
  _Alignas(64) _Atomic uint64_t pieces;  /* phase in the upper half, pieces taken in the lower one */
  _Alignas(64) atomic_int done;          /* pieces of this phase */
  _Alignas(64) atomic_int inside;        /* threads in `work`; negative when nobody may enter */
  atomic_int sleepers;
  atomic_int is_stopping;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
};

#define CLOSED (-1000000)

static void wait_a_little(int spins) {
  if (spins < SPINS_BEFORE_YIELD) relax();
  else sched_yield();
}

static unsigned present_phase(Team *team) {
  return (unsigned)(atomic_load_explicit(&team->pieces, memory_order_acquire) >> 32);
}

int next_piece(Member *member, int total) {
  Team *team = member->team;
  if (member->holds_piece) {
    member->holds_piece = 0;
    if (atomic_fetch_add_explicit(&team->done, 1, memory_order_acq_rel) == total - 1) {
      /* The last piece, so nobody else counts or takes one of this phase. */
      atomic_store_explicit(&team->done, 0, memory_order_relaxed);
      atomic_store_explicit(&team->pieces, (uint64_t)(member->phase + 1) << 32, memory_order_release);
      return -1;
    }
  }
  uint64_t seen = atomic_load_explicit(&team->pieces, memory_order_acquire);
  do {
    if ((unsigned)(seen >> 32) != member->phase || (int)(uint32_t)seen >= total) return -1;
  } while (!atomic_compare_exchange_weak_explicit(&team->pieces, &seen, seen + 1, memory_order_acq_rel,
                                                  memory_order_acquire));
  member->holds_piece = 1;
  return (int)(uint32_t)seen;
}

void next_phase(Member *member) {
  for (int spins = 0; present_phase(member->team) == member->phase; spins++) wait_a_little(spins);
  member->phase++;
}

static void wait_for_run(Team *team, unsigned seen) {
  for (int spins = 0; spins < SPINS_BEFORE_YIELD + YIELDS_BEFORE_SLEEP; spins++) {
    if (atomic_load_explicit(&team->run, memory_order_acquire) != seen) return;
    wait_a_little(spins);
  }
  pthread_mutex_lock(&team->mutex);
  atomic_fetch_add(&team->sleepers, 1);
  while (atomic_load(&team->run) == seen) pthread_cond_wait(&team->wake, &team->mutex);
  atomic_fetch_sub(&team->sleepers, 1);
  pthread_mutex_unlock(&team->mutex);
}

/* Take part in the present run, unless it is over. Whoever comes late passes through the phases that are. */
static void take_part(Team *team) {
  if (atomic_fetch_add(&team->inside, 1) >= 0) {
    Member member = {team, team->first_phase, 0};
    team->work(team->context, &member);
  }
  atomic_fetch_sub(&team->inside, 1);
}

static void *thread_main(void *argument) {
  Team *team = argument;
  for (unsigned seen = 0;;) {
    wait_for_run(team, seen);
    seen = atomic_load(&team->run);
    if (atomic_load(&team->is_stopping)) return NULL;
    take_part(team);
  }
}

Team *team_create(int num_threads) {
  Team *team = aligned_alloc(64, (sizeof(Team) + 63) / 64 * 64);
  if (!team) return NULL;
  *team = (Team){.size = 1, .inside = CLOSED};
  pthread_mutex_init(&team->mutex, NULL);
  pthread_cond_init(&team->wake, NULL);
  team->threads = calloc((size_t)num_threads, sizeof(pthread_t));
  /* Where the system gives fewer threads, those there are do the work. */
  while (team->threads && team->size < num_threads && !pthread_create(&team->threads[team->size], NULL, thread_main, team)) team->size++;
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
  team->first_phase = present_phase(team);
  atomic_fetch_sub(&team->inside, CLOSED);
  announce(team);
  Member member = {team, team->first_phase, 0};
  work(context, &member);
  atomic_fetch_add(&team->inside, CLOSED);
  for (int spins = 0; atomic_load(&team->inside) != CLOSED; spins++) wait_a_little(spins);
}

void team_destroy(Team *team) {
  atomic_store(&team->is_stopping, 1);
  announce(team);
  for (int id = 1; id < team->size; id++) pthread_join(team->threads[id], NULL);
  pthread_mutex_destroy(&team->mutex);
  pthread_cond_destroy(&team->wake);
  free(team->threads);
  free(team);
}
