"""What crosses a boundary between parts, as types: events, tables, the manifest, settings, errors.

    errors                     the error tree and the exit codes
    events, export             Kafka events, and their JSON Schemas as files
    event_forms                other spellings of an event that mean the same
    tables                     every Postgres table
    settings                   every setting, with its default, unit and meaning
    settings_retrain           those of retraining, the gate and the canary
    settings_compute           those of the device that trains and scores
    settings_kafka             those of Kafka
    settings_models            those of the model that draws
    settings_triton            those of the inference servers
    settings_secrets           secrets from files
    settings_group             what a group of settings is made of
    settings_ray               those of nights that are drawn on a Ray cluster
    settings_retention         those of retention
    settings_history           those of clicked posters in histories
    settings_s3                those of the object store
    settings_safety            those of the safety verdict
    settings_loop              those of readers and of the click model
    settings_web               those of `pigeon serve`
    connections                options of the Kafka, S3 and Postgres clients
    s3_keys                    keys of S3 that files renew
    s3_prefix, s3_errors       keys in a shared bucket; what an error of the store means
    kafka_access               what a broker answers to our login, asked beforehand
    kafka_network              connections of every Kafka client, given up soon where a broker is silent
    kafka_rights               which rights a login has at a broker
    kafka_token                tokens of an OIDC provider, for OAUTHBEARER
    preferences                a preference pair, and the prompt that it rests on
    manifest, manifest_files   the reader of the S3 manifest, and the files that it reads
    manifest_choice            which poster a user is shown
    manifest_source            sets as they are read from the bucket
    manifest_shards            shards: sorted, memory-mapped, searched in place
    manifest_cache             the folder of shards that processes share
    manifest_refresh           the thread that looks for new sets
    manifest_withdrawn         the list of what was taken back
    manifest_metrics           a reader's figures for Prometheus
    answers                    a task's answers as they are stored
    click_features             what a click model reads of a task's answers
    click_model                a click model as it is stored and scored
    control                    who is in the control group, and the ids that it reports
    fetch, deadline_http       catalogue pictures fetched within one deadline
    deadline_work              work that is waited for until a moment, whatever hangs
    fetched                    what comes out of that
    image_files                pictures that are files of this machine
    signed_objects             addresses of S3 objects with our signature
    image_addresses            where pictures may come from
    images                     what a picture is, for import and night
    image_colours              any depth, profile and transparency made 8-bit sRGB
    titles, typefaces          titles as they are written; which fonts have their characters
    faultpoints                named points at which the fault tests kill a process
    hashing                    a number in [0, 1) from a text
    runtime                    logs, traces, metrics, health, Kafka logins and stop signals of long-running parts

Every other part may import this one; it imports none of them.
"""
