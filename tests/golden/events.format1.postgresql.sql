CREATE TABLE event_store (
    format integer NOT NULL
);
CREATE TABLE events (
    event_id text NOT NULL,
    suggestion_id text NOT NULL,
    event text NOT NULL,
    template text,
    "position" integer,
    at timestamp with time zone NOT NULL,
    received timestamp with time zone NOT NULL
);
CREATE TABLE suggestions (
    suggestion_id text NOT NULL,
    at timestamp with time zone NOT NULL,
    case_id text,
    advocate_id text,
    model_version text NOT NULL,
    templates json NOT NULL,
    probabilities json NOT NULL,
    tokens integer NOT NULL,
    dropped_messages integer NOT NULL,
    k integer NOT NULL,
    threshold double precision,
    latency_ms double precision NOT NULL,
    reason text
);
INSERT INTO event_store VALUES (1);
INSERT INTO events VALUES ('03fc27f3ed53a02e592f4eaa5508a97fb37d24acf0454539305e97757b8ec2db', '00000000000000000000000000000000', 'shown', NULL, NULL, '2026-01-31 12:00:05.123456+00', '2026-11-28 20:44:10.626915+00');
INSERT INTO events VALUES ('4122f67b1dd87c585c4638017039b344deb06b200c679e6339dc3dc84f5f4419', '00000000000000000000000000000000', 'picked', 'o''Neil "x"; -- 💳 \ %s :a', 2, '2026-01-31 12:00:05.123456+00', '2026-11-28 20:44:10.626966+00');
INSERT INTO events VALUES ('04517f4c6ee24fce759773e18f625e6be6d33dc43140556eae0db82094128618', '00000000000000000000000000000001', 'shown', NULL, NULL, '2026-01-31 12:00:05.123456+00', '2026-11-28 20:44:10.854326+00');
INSERT INTO events VALUES ('c9fa2d3f4a81fc1797f35a9f63b023364b1ed2ff26efd80d12fd61ace0305e97', '00000000000000000000000000000001', 'picked', 'o''Neil "x"; -- 💳 \ %s :a', 2, '2026-01-31 12:00:05.123456+00', '2026-11-28 20:44:10.85438+00');
INSERT INTO suggestions VALUES ('00000000000000000000000000000000', '2026-01-31 12:00:00.123456+00', 'o''Neil "x"; -- 💳 \ %s :a', 'a-0', 'v1', '["b","o''Neil \"x\"; -- 💳 \\ %s :a","a"]', '[0.6,0.3333333333333333,1e-9]', 400, 2, 3, 0.1, 1.7, NULL);
INSERT INTO suggestions VALUES ('00000000000000000000000000000001', '2026-02-01 12:00:00.123456+00', 'o''Neil "x"; -- 💳 \ %s :a', 'a-1', 'v1', '["b","o''Neil \"x\"; -- 💳 \\ %s :a","a"]', '[0.6,0.3333333333333333,1e-9]', 400, 2, 3, 0.1, 1.7, NULL);
INSERT INTO suggestions VALUES ('00000000000000000000000000000002', '2026-02-02 12:00:00.123456+00', 'c', NULL, 'v1', '[]', '[]', 400, 2, 3, NULL, 1.7, 'the best one is below the threshold');
ALTER TABLE ONLY events
    ADD CONSTRAINT events_pkey PRIMARY KEY (event_id);
ALTER TABLE ONLY suggestions
    ADD CONSTRAINT suggestions_pkey PRIMARY KEY (suggestion_id);
CREATE INDEX ix_events_suggestion_id ON events USING btree (suggestion_id);
CREATE INDEX ix_suggestions_at ON suggestions USING btree (at);
ALTER TABLE ONLY events
    ADD CONSTRAINT events_suggestion_id_fkey FOREIGN KEY (suggestion_id) REFERENCES suggestions(suggestion_id);
