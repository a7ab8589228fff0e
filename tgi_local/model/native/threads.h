/* A team of threads that go through the same phases of work, each phase cut into pieces that any of them takes.
 *
 * A phase ends when its pieces are done, not when all threads have come: one that another program has pushed off its
 * core holds up nothing but the piece it had begun, and catches up later. */
#ifndef TGI_THREADS_H
#define TGI_THREADS_H

typedef struct Team Team;
/* What one thread knows of a run. */
typedef struct {
  Team *team;
  unsigned phase;
  int holds_piece;
} Member;

/* NULL when there is no memory. */
Team *team_create(int num_threads);
void team_destroy(Team *team);
int team_size(const Team *team);
/* Run `work(context, member)` on every thread, the caller's included; returns when nobody works on it any more. */
void team_run(Team *team, void (*work)(void *context, Member *member), void *context);
/* Take one of this phase's `total` (> 0) pieces: its number, or -1 when none is left. */
int next_piece(Member *member, int total);
/* Wait until all pieces of this phase, which must have been taken, are done; begins the next phase. */
void next_phase(Member *member);

#endif
