-- Least rights in Postgres: three roles without a login, for the logins of each part.
--
-- Run as the owner of our tables, which must also be allowed to create roles (or create them beforehand), after each
-- `pigeon db upgrade`; running it again changes nothing:
--   psql -v ON_ERROR_STOP=1 -f deploy/postgres/roles.sql postgresql://OWNER@HOST/pigeon
-- then for each part a login, which gets its rights from its role:
--   CREATE ROLE consumer_1 LOGIN PASSWORD '...' IN ROLE pigeon_ingest;
--
--   owner          `pigeon db upgrade`, and `pigeon db upkeep`, which makes and drops the months of interactions
--   pigeon_ingest  `pigeon consume`, `histories rebuild`, `dlq`
--   pigeon_night   `pigeon schedule`, `night`, `retrain`, `models`, `loop`, `serve`
--   pigeon_read    looking: `pigeon night status`, dashboards
--
-- None of them can make or change tables. So `pigeon db upkeep` needs a job of its own as the owner, daily and before the
-- scheduler's upkeep, which then finds nothing to do; a consumer that meets a month without a partition waits for that job.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['pigeon_ingest', 'pigeon_night', 'pigeon_read'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA public FROM %I', name);
        EXECUTE format('REVOKE ALL ON SCHEMA public FROM %I', name);
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', name);
        -- Ids that Postgres draws.
        EXECUTE format('GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO %I', name);
    END LOOP;
    -- Batches are staged in temporary tables.
    EXECUTE format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO pigeon_ingest', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO pigeon_night, pigeon_read', current_database());
END
$$;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE USAGE ON ALL SEQUENCES IN SCHEMA public FROM pigeon_read;

-- What events change. Feedback is matched with posters.
GRANT SELECT, INSERT, UPDATE, DELETE ON
    items, interactions, user_histories, recommendations, poster_feedback, erasures, user_objections, consumer_offsets,
    dead_letter_actions, dead_letters, dead_letter_marks
    TO pigeon_ingest;
GRANT SELECT ON posters, alembic_version TO pigeon_ingest;

-- What nights, erasures, upkeep and the loop change. Events are read; of them only what a user asked to be erased, what is past
-- retention and an operator's objection are written.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO pigeon_night, pigeon_read;
GRANT INSERT, UPDATE, DELETE ON
    night_runs, night_tasks, night_skips, posters, current_posters, schedule_moments, withdrawals, upkeep_progress, leases,
    image_features, catalog_images, answer_sets, pictures, compositions, planned_users, planned_items,
    preference_snapshots, preference_snapshot_users, click_models, model_versions, model_events, model_overrides
    TO pigeon_night;
GRANT UPDATE ON erasures TO pigeon_night;
-- The console's audit log, dead letters that somebody dealt with there, and their index.
GRANT INSERT, UPDATE ON audit_entries TO pigeon_night;
GRANT INSERT, UPDATE, DELETE ON dead_letter_actions, dead_letters, dead_letter_marks TO pigeon_night;
GRANT INSERT, UPDATE, DELETE ON user_objections TO pigeon_night;
-- Rows are locked before they are deleted, which asks for UPDATE.
GRANT UPDATE, DELETE ON poster_feedback TO pigeon_night;
