"""The operators' console: pages that the server renders, without a script.

    views                where each page is, and what it shows
    changes              what can be changed, signing in and out
    render               pages from templates
    sessions             sessions in which pages read
    nights, posters      nights with their funnel; posters beside what they were drawn from
    registry             models, gate and canary numbers, and what changes them
    taken_back           withdrawals and erasures

Every list from Postgres is paged by a key, so that its last page costs what the first one does; dead letters come from
their index, which is compared with the topics every few minutes.
"""
