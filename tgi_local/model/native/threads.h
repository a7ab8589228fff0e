/* A team of threads that run one function together, with barriers and shared work counters inside it. */
#ifndef TGI_THREADS_H
#define TGI_THREADS_H

typedef struct Team Team;
/* What one member sees of a run: its number, and its place in the sequence of barriers. */
typedef struct {
  Team *team;
  int id;
  unsigned phase;
} Member;

Team *team_create(int num_threads);
void team_destroy(Team *team);
int team_size(const Team *team);
/* Run `work(context, member)` on every thread, the caller's included; returns when all have returned. */
void team_run(Team *team, void (*work)(void *context, Member *member), void *context);
/* The next unclaimed piece of this phase's work, from 0. */
int next_piece(Member *member);
/* Wait for the others; begins the next phase, whose pieces count from 0 again. */
void next_phase(Member *member);

#endif
