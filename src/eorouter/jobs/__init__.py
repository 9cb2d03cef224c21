"""Durable jobs: the database owns them, Dask only runs their shards. `docs/jobs.md` tells the whole story.

queue       what the API calls: create, dispatch, cancel, read, wait
states      what may follow what, as data
fairness    whose shard is next
leases      what a dispatcher writes: claim, record, renew, reap
publish     a finished job's objects and items, once
wakeup      learning quickly that the database changed
dispatcher  the process that does the above with a cluster; `python -m eorouter.jobs`
supervisor  keeps such a process alive beside an API
processes   scheduler and workers as processes of their own; which workers a dispatcher has
certificates  by which those know each other
"""
