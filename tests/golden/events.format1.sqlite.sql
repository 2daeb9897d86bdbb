BEGIN TRANSACTION;
CREATE TABLE event_store (
	format INTEGER NOT NULL
);
INSERT INTO "event_store" VALUES(1);
CREATE TABLE events (
	event_id TEXT NOT NULL, 
	suggestion_id TEXT NOT NULL, 
	event TEXT NOT NULL, 
	template TEXT, 
	position INTEGER, 
	at DATETIME NOT NULL, 
	received DATETIME NOT NULL, 
	PRIMARY KEY (event_id), 
	FOREIGN KEY(suggestion_id) REFERENCES suggestions (suggestion_id)
);
INSERT INTO "events" VALUES('03fc27f3ed53a02e592f4eaa5508a97fb37d24acf0454539305e97757b8ec2db','00000000000000000000000000000000','shown',NULL,NULL,'2026-01-31 12:00:05.123456','2026-11-28 20:43:51.278262');
INSERT INTO "events" VALUES('4122f67b1dd87c585c4638017039b344deb06b200c679e6339dc3dc84f5f4419','00000000000000000000000000000000','picked','o''Neil "x"; -- 💳 \ %s :a',2,'2026-01-31 12:00:05.123456','2026-11-28 20:43:51.278316');
INSERT INTO "events" VALUES('04517f4c6ee24fce759773e18f625e6be6d33dc43140556eae0db82094128618','00000000000000000000000000000001','shown',NULL,NULL,'2026-01-31 12:00:05.123456','2026-11-28 20:43:51.454841');
INSERT INTO "events" VALUES('c9fa2d3f4a81fc1797f35a9f63b023364b1ed2ff26efd80d12fd61ace0305e97','00000000000000000000000000000001','picked','o''Neil "x"; -- 💳 \ %s :a',2,'2026-01-31 12:00:05.123456','2026-11-28 20:43:51.454904');
CREATE TABLE suggestions (
	suggestion_id TEXT NOT NULL, 
	at DATETIME NOT NULL, 
	case_id TEXT, 
	advocate_id TEXT, 
	model_version TEXT NOT NULL, 
	templates JSON NOT NULL, 
	probabilities JSON NOT NULL, 
	tokens INTEGER NOT NULL, 
	dropped_messages INTEGER NOT NULL, 
	k INTEGER NOT NULL, 
	threshold DOUBLE, 
	latency_ms DOUBLE NOT NULL, 
	reason TEXT, 
	PRIMARY KEY (suggestion_id)
);
INSERT INTO "suggestions" VALUES('00000000000000000000000000000000','2026-01-31 12:00:00.123456','o''Neil "x"; -- 💳 \ %s :a','a-0','v1','["b","o''Neil \"x\"; -- 💳 \\ %s :a","a"]','[0.6,0.3333333333333333,1e-9]',400,2,3,0.1,1.7,NULL);
INSERT INTO "suggestions" VALUES('00000000000000000000000000000001','2026-02-01 12:00:00.123456','o''Neil "x"; -- 💳 \ %s :a','a-1','v1','["b","o''Neil \"x\"; -- 💳 \\ %s :a","a"]','[0.6,0.3333333333333333,1e-9]',400,2,3,0.1,1.7,NULL);
INSERT INTO "suggestions" VALUES('00000000000000000000000000000002','2026-02-02 12:00:00.123456','c',NULL,'v1','[]','[]',400,2,3,NULL,1.7,'the best one is below the threshold');
CREATE INDEX ix_suggestions_at ON suggestions (at);
CREATE INDEX ix_events_suggestion_id ON events (suggestion_id);
COMMIT;
