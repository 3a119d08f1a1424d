CREATE TABLE `agents` (
	`id` text PRIMARY KEY NOT NULL,
	`name` text NOT NULL,
	`role` text NOT NULL,
	`site` text NOT NULL,
	`labels` text NOT NULL,
	`public_key` blob NOT NULL,
	`public_key_id` text NOT NULL,
	`joined_at_ms` integer NOT NULL,
	`revoked_at_ms` integer,
	`allowed_analysers` text,
	`leases_max` integer DEFAULT 1 NOT NULL,
	`offer` text,
	`certificate_serial` text,
	`certificate_expires_at_ms` integer,
	`build` text,
	`instance_id` text,
	`connected_at_ms` integer,
	`last_seen_at_ms` integer,
	`clock_skew_ms` integer
);
--> statement-breakpoint
CREATE UNIQUE INDEX `agents_name_unique` ON `agents` (`name`);--> statement-breakpoint
CREATE UNIQUE INDEX `agents_publicKeyId_unique` ON `agents` (`public_key_id`);--> statement-breakpoint
CREATE INDEX `agents_by_site` ON `agents` (`site`);--> statement-breakpoint
CREATE TABLE `alerts` (
	`id` text PRIMARY KEY NOT NULL,
	`type` text NOT NULL,
	`severity` text NOT NULL,
	`site` text NOT NULL,
	`at_ms` integer NOT NULL,
	`summary` text NOT NULL,
	`detail` text NOT NULL,
	`delivered_at_ms` integer
);
--> statement-breakpoint
CREATE INDEX `alerts_by_time` ON `alerts` (`at_ms`);--> statement-breakpoint
CREATE TABLE `api_tokens` (
	`id` text PRIMARY KEY NOT NULL,
	`principal_id` text NOT NULL,
	`token_sha256` blob NOT NULL,
	`created_at_ms` integer NOT NULL,
	`created_by` text,
	`expires_at_ms` integer NOT NULL,
	`last_used_at_ms` integer,
	`revoked_at_ms` integer,
	FOREIGN KEY (`principal_id`) REFERENCES `principals`(`id`) ON UPDATE no action ON DELETE no action
);
--> statement-breakpoint
CREATE UNIQUE INDEX `api_tokens_token_sha256_unique` ON `api_tokens` (`token_sha256`);--> statement-breakpoint
CREATE TABLE `approvals` (
	`id` text PRIMARY KEY NOT NULL,
	`operation` text NOT NULL,
	`site` text NOT NULL,
	`reason` text NOT NULL,
	`asked_by` text NOT NULL,
	`asked_by_token` text NOT NULL,
	`any_site` integer DEFAULT false NOT NULL,
	`asked_at_ms` integer NOT NULL,
	`expires_at_ms` integer NOT NULL,
	`state` text NOT NULL,
	`decided_by` text,
	`decided_at_ms` integer,
	`used_at_ms` integer
);
--> statement-breakpoint
CREATE INDEX `approvals_by_state` ON `approvals` (`state`,`expires_at_ms`);--> statement-breakpoint
CREATE INDEX `approvals_by_token` ON `approvals` (`asked_by_token`,`state`);--> statement-breakpoint
CREATE TABLE `audit_events` (
	`seq` integer PRIMARY KEY NOT NULL,
	`at_ms` integer NOT NULL,
	`type` text NOT NULL,
	`actor` text NOT NULL,
	`site` text NOT NULL,
	`job_id` text,
	`agent_id` text,
	`detail` text NOT NULL,
	`previous_sha256` text NOT NULL,
	`sha256` text NOT NULL
);
--> statement-breakpoint
CREATE INDEX `audit_by_job` ON `audit_events` (`job_id`,`seq`);--> statement-breakpoint
CREATE INDEX `audit_by_site` ON `audit_events` (`site`,`seq`);--> statement-breakpoint
CREATE TABLE `audit_exports` (
	`sink` text PRIMARY KEY NOT NULL,
	`last_seq` integer NOT NULL,
	`last_sha256` text NOT NULL,
	`exported_at_ms` integer
);
--> statement-breakpoint
CREATE TABLE `certificates` (
	`job_id` text PRIMARY KEY NOT NULL,
	`site` text NOT NULL,
	`envelope` text NOT NULL,
	`issued_at_ms` integer NOT NULL,
	FOREIGN KEY (`job_id`) REFERENCES `jobs`(`id`) ON UPDATE no action ON DELETE no action
);
--> statement-breakpoint
CREATE TABLE `command_numbers` (
	`id` integer PRIMARY KEY NOT NULL,
	`last_seq` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE `commands` (
	`id` text PRIMARY KEY NOT NULL,
	`agent_id` text NOT NULL,
	`seq` integer NOT NULL,
	`lane` text NOT NULL,
	`body` text NOT NULL,
	`created_at_ms` integer NOT NULL,
	`sent_at_ms` integer,
	`acked_at_ms` integer,
	`problem_code` text,
	`cancelled_at_ms` integer,
	FOREIGN KEY (`agent_id`) REFERENCES `agents`(`id`) ON UPDATE no action ON DELETE no action
);
--> statement-breakpoint
CREATE UNIQUE INDEX `commands_by_agent_seq` ON `commands` (`agent_id`,`seq`);--> statement-breakpoint
CREATE INDEX `commands_open` ON `commands` (`agent_id`,`acked_at_ms`);--> statement-breakpoint
CREATE TABLE `control_plane` (
	`id` text PRIMARY KEY NOT NULL,
	`created_at_ms` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE `epochs` (
	`id` text PRIMARY KEY NOT NULL,
	`created_at_ms` integer NOT NULL,
	`state` text NOT NULL,
	`destroyed_at_ms` integer,
	`store` text DEFAULT 'file' NOT NULL,
	`level` text DEFAULT 'none' NOT NULL,
	`level_reason` text DEFAULT 'not recorded' NOT NULL
);
--> statement-breakpoint
CREATE TABLE `evidence_documents` (
	`id` text PRIMARY KEY NOT NULL,
	`kind` text NOT NULL,
	`subject_id` text NOT NULL,
	`site` text NOT NULL,
	`envelope` text NOT NULL,
	`issued_at_ms` integer NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `evidence_by_subject` ON `evidence_documents` (`subject_id`,`kind`);--> statement-breakpoint
CREATE TABLE `idempotency_keys` (
	`principal_id` text NOT NULL,
	`key` text NOT NULL,
	`request_sha256` blob NOT NULL,
	`status` integer NOT NULL,
	`body` text NOT NULL,
	`created_at_ms` integer NOT NULL,
	PRIMARY KEY(`principal_id`, `key`)
);
--> statement-breakpoint
CREATE TABLE `job_keys` (
	`job_id` text PRIMARY KEY NOT NULL,
	`epoch_id` text NOT NULL,
	`wrapped` blob NOT NULL,
	FOREIGN KEY (`job_id`) REFERENCES `jobs`(`id`) ON UPDATE no action ON DELETE no action
);
--> statement-breakpoint
CREATE INDEX `job_keys_by_epoch` ON `job_keys` (`epoch_id`);--> statement-breakpoint
CREATE TABLE `jobs` (
	`id` text PRIMARY KEY NOT NULL,
	`site` text NOT NULL,
	`capture_agent_id` text NOT NULL,
	`analyser` text NOT NULL,
	`state` text NOT NULL,
	`frozen_from` text,
	`media_count` integer NOT NULL,
	`sealed_bytes` integer NOT NULL,
	`sealed_header` blob NOT NULL,
	`sealed_header_sha256` text NOT NULL,
	`spool_sha256` text NOT NULL,
	`source` text NOT NULL,
	`object_key` text NOT NULL,
	`sealed_at_ms` integer NOT NULL,
	`announced_at_ms` integer NOT NULL,
	`stored_at_ms` integer,
	`analysed_at_ms` integer,
	`intent_at_ms` integer,
	`keys_unusable_at_ms` integer,
	`keys_unrecoverable_at_ms` integer,
	`objects_absent_at_ms` integer,
	`deleted_at_ms` integer,
	`state_changed_at_ms` integer NOT NULL,
	`expires_at_ms` integer,
	`lease_attempts` integer DEFAULT 0 NOT NULL,
	`fence` integer DEFAULT 0 NOT NULL,
	`problem_code` text,
	`problem_message` text,
	`held_at_ms` integer,
	`frozen_by_hold` integer DEFAULT false NOT NULL,
	`exposed_at_ms` integer,
	`purge_id` text,
	FOREIGN KEY (`capture_agent_id`) REFERENCES `agents`(`id`) ON UPDATE no action ON DELETE no action
);
--> statement-breakpoint
CREATE UNIQUE INDEX `jobs_objectKey_unique` ON `jobs` (`object_key`);--> statement-breakpoint
CREATE INDEX `jobs_by_state` ON `jobs` (`state`,`state_changed_at_ms`);--> statement-breakpoint
CREATE INDEX `jobs_by_site` ON `jobs` (`site`,`id`);--> statement-breakpoint
CREATE INDEX `jobs_by_agent` ON `jobs` (`capture_agent_id`,`id`);--> statement-breakpoint
CREATE TABLE `join_tokens` (
	`id` text PRIMARY KEY NOT NULL,
	`token_sha256` blob NOT NULL,
	`role` text NOT NULL,
	`site` text NOT NULL,
	`labels` text NOT NULL,
	`agent_name` text,
	`created_at_ms` integer NOT NULL,
	`created_by` text,
	`expires_at_ms` integer NOT NULL,
	`used_at_ms` integer,
	`used_by_agent_id` text,
	`revoked_at_ms` integer
);
--> statement-breakpoint
CREATE UNIQUE INDEX `join_tokens_token_sha256_unique` ON `join_tokens` (`token_sha256`);--> statement-breakpoint
CREATE TABLE `leases` (
	`id` text PRIMARY KEY NOT NULL,
	`job_id` text NOT NULL,
	`node_id` text NOT NULL,
	`fence` integer NOT NULL,
	`granted_at_ms` integer NOT NULL,
	`accepted_at_ms` integer,
	`key_released_at_ms` integer,
	`deadline_at_ms` integer NOT NULL,
	`ended_at_ms` integer,
	`end_reason` text,
	`wiped_at_ms` integer,
	FOREIGN KEY (`job_id`) REFERENCES `jobs`(`id`) ON UPDATE no action ON DELETE no action,
	FOREIGN KEY (`node_id`) REFERENCES `agents`(`id`) ON UPDATE no action ON DELETE no action
);
--> statement-breakpoint
CREATE UNIQUE INDEX `leases_by_job_fence` ON `leases` (`job_id`,`fence`);--> statement-breakpoint
CREATE INDEX `leases_open` ON `leases` (`ended_at_ms`,`deadline_at_ms`);--> statement-breakpoint
CREATE INDEX `leases_by_node` ON `leases` (`node_id`,`ended_at_ms`);--> statement-breakpoint
CREATE INDEX `leases_unwiped` ON `leases` (`wiped_at_ms`,`node_id`);--> statement-breakpoint
CREATE TABLE `legal_holds` (
	`id` text PRIMARY KEY NOT NULL,
	`job_id` text NOT NULL,
	`reason` text NOT NULL,
	`set_by` text NOT NULL,
	`set_at_ms` integer NOT NULL,
	`lift_asked_by` text,
	`lifted_by` text,
	`lifted_at_ms` integer,
	FOREIGN KEY (`job_id`) REFERENCES `jobs`(`id`) ON UPDATE no action ON DELETE no action
);
--> statement-breakpoint
CREATE INDEX `legal_holds_by_job` ON `legal_holds` (`job_id`,`lifted_at_ms`);--> statement-breakpoint
CREATE TABLE `obligations` (
	`id` text PRIMARY KEY NOT NULL,
	`job_id` text,
	`kind` text NOT NULL,
	`site` text NOT NULL,
	`holder` text,
	`lease_id` text,
	`agent_id` text,
	`subject_id` text,
	`command_id` text,
	`state` text NOT NULL,
	`attempts` integer DEFAULT 0 NOT NULL,
	`next_try_at_ms` integer NOT NULL,
	`deadline_at_ms` integer NOT NULL,
	`written_off_at_ms` integer,
	`alarmed_at_ms` integer,
	`last_error_code` text,
	`last_error` text,
	`created_at_ms` integer NOT NULL,
	`done_at_ms` integer,
	FOREIGN KEY (`job_id`) REFERENCES `jobs`(`id`) ON UPDATE no action ON DELETE no action
);
--> statement-breakpoint
CREATE INDEX `obligations_due` ON `obligations` (`state`,`next_try_at_ms`);--> statement-breakpoint
CREATE INDEX `obligations_by_job` ON `obligations` (`job_id`,`kind`);--> statement-breakpoint
CREATE INDEX `obligations_by_subject` ON `obligations` (`subject_id`,`state`);--> statement-breakpoint
CREATE INDEX `obligations_by_agent` ON `obligations` (`agent_id`,`state`);--> statement-breakpoint
CREATE INDEX `obligations_by_command` ON `obligations` (`command_id`) WHERE command_id IS NOT NULL;--> statement-breakpoint
CREATE TABLE `principals` (
	`id` text PRIMARY KEY NOT NULL,
	`name` text NOT NULL,
	`created_at_ms` integer NOT NULL,
	`created_by` text
);
--> statement-breakpoint
CREATE UNIQUE INDEX `principals_name_unique` ON `principals` (`name`);--> statement-breakpoint
CREATE TABLE `purge_jobs` (
	`purge_id` text NOT NULL,
	`job_id` text NOT NULL,
	`from_state` text NOT NULL,
	`ordered_at_ms` integer,
	PRIMARY KEY(`purge_id`, `job_id`),
	FOREIGN KEY (`purge_id`) REFERENCES `purges`(`id`) ON UPDATE no action ON DELETE no action,
	FOREIGN KEY (`job_id`) REFERENCES `jobs`(`id`) ON UPDATE no action ON DELETE no action
);
--> statement-breakpoint
CREATE TABLE `purges` (
	`id` text PRIMARY KEY NOT NULL,
	`scope` text NOT NULL,
	`site` text NOT NULL,
	`reason` text NOT NULL,
	`including_held` integer NOT NULL,
	`state` text NOT NULL,
	`requested_by` text NOT NULL,
	`requested_at_ms` integer NOT NULL,
	`approved_by` text,
	`break_glass` integer DEFAULT false NOT NULL,
	`intent_at_ms` integer,
	`keys_unusable_at_ms` integer,
	`keys_unrecoverable_at_ms` integer,
	`orders_durable_at_ms` integer,
	`objects_absent_at_ms` integer,
	`concluded_at_ms` integer,
	`jobs` integer DEFAULT 0 NOT NULL,
	`held_skipped` integer DEFAULT 0 NOT NULL,
	`agents` integer DEFAULT 0 NOT NULL,
	`receive_keys` integer DEFAULT 0 NOT NULL,
	`leases` integer DEFAULT 0 NOT NULL,
	`leases_over_at_ms` integer,
	`approval_id` text,
	`held_skipped_ids` text,
	`unasked` integer DEFAULT 0 NOT NULL,
	`unasked_ids` text,
	`jobs_sha256` text
);
--> statement-breakpoint
CREATE INDEX `purges_by_state` ON `purges` (`state`,`id`);--> statement-breakpoint
CREATE INDEX `purges_by_intent` ON `purges` (`intent_at_ms`);--> statement-breakpoint
CREATE TABLE `receipts` (
	`obligation_id` text PRIMARY KEY NOT NULL,
	`job_id` text,
	`envelope` text NOT NULL,
	`payload_sha256` text NOT NULL,
	`signer_key_id` text NOT NULL,
	`signer_public_key` blob NOT NULL,
	`signer_not_before_ms` integer,
	`signer_not_after_ms` integer,
	`received_at_ms` integer NOT NULL,
	FOREIGN KEY (`obligation_id`) REFERENCES `obligations`(`id`) ON UPDATE no action ON DELETE no action
);
--> statement-breakpoint
CREATE TABLE `receive_keys` (
	`id` text PRIMARY KEY NOT NULL,
	`agent_id` text NOT NULL,
	`epoch_id` text NOT NULL,
	`wrapped_seed` blob NOT NULL,
	`public_key` blob NOT NULL,
	`supplied_at_ms` integer,
	`expires_at_ms` integer NOT NULL,
	FOREIGN KEY (`agent_id`) REFERENCES `agents`(`id`) ON UPDATE no action ON DELETE no action
);
--> statement-breakpoint
CREATE INDEX `receive_keys_by_agent` ON `receive_keys` (`agent_id`,`supplied_at_ms`);--> statement-breakpoint
CREATE INDEX `receive_keys_by_epoch` ON `receive_keys` (`epoch_id`);--> statement-breakpoint
CREATE INDEX `receive_keys_by_expiry` ON `receive_keys` (`expires_at_ms`);--> statement-breakpoint
CREATE TABLE `results` (
	`job_id` text PRIMARY KEY NOT NULL,
	`lease_id` text NOT NULL,
	`node_id` text NOT NULL,
	`fence` integer NOT NULL,
	`sealed` blob,
	`sealed_sha256` text NOT NULL,
	`sealed_bytes` integer NOT NULL,
	`received_at_ms` integer NOT NULL,
	`delivered_at_ms` integer,
	`expires_at_ms` integer NOT NULL,
	FOREIGN KEY (`job_id`) REFERENCES `jobs`(`id`) ON UPDATE no action ON DELETE no action
);
--> statement-breakpoint
CREATE TABLE `revocations` (
	`id` text PRIMARY KEY NOT NULL,
	`kind` text NOT NULL,
	`target` text NOT NULL,
	`site` text NOT NULL,
	`reason` text NOT NULL,
	`revoked_by` text,
	`at_ms` integer NOT NULL,
	`detail` text NOT NULL
);
--> statement-breakpoint
CREATE INDEX `revocations_by_time` ON `revocations` (`at_ms`);--> statement-breakpoint
CREATE TABLE `rights` (
	`principal_id` text NOT NULL,
	`role` text NOT NULL,
	`site` text NOT NULL,
	PRIMARY KEY(`principal_id`, `role`, `site`),
	FOREIGN KEY (`principal_id`) REFERENCES `principals`(`id`) ON UPDATE no action ON DELETE no action
);
--> statement-breakpoint
CREATE TABLE `sweep_findings` (
	`id` text PRIMARY KEY NOT NULL,
	`sweep_id` text NOT NULL,
	`kind` text NOT NULL,
	`subject` text NOT NULL,
	`agent_id` text,
	`job_id` text,
	`state` text NOT NULL,
	`first_seen_at_ms` integer NOT NULL,
	`last_seen_at_ms` integer NOT NULL,
	`grace_until_ms` integer,
	`ended_at_ms` integer
);
--> statement-breakpoint
CREATE UNIQUE INDEX `sweep_findings_by_subject` ON `sweep_findings` (`kind`,`subject`);--> statement-breakpoint
CREATE INDEX `sweep_findings_by_state` ON `sweep_findings` (`state`,`grace_until_ms`);--> statement-breakpoint
CREATE TABLE `sweeps` (
	`id` text PRIMARY KEY NOT NULL,
	`trigger` text NOT NULL,
	`dry_run` integer NOT NULL,
	`state` text NOT NULL,
	`started_at_ms` integer NOT NULL,
	`ended_at_ms` integer,
	`problem_code` text,
	`counts` text NOT NULL
);
--> statement-breakpoint
CREATE TABLE `uploads` (
	`id` text PRIMARY KEY NOT NULL,
	`job_id` text NOT NULL,
	`object_key` text NOT NULL,
	`store_upload_id` text,
	`part_bytes` integer NOT NULL,
	`state` text NOT NULL,
	`created_at_ms` integer NOT NULL,
	`ended_at_ms` integer,
	FOREIGN KEY (`job_id`) REFERENCES `jobs`(`id`) ON UPDATE no action ON DELETE no action
);
--> statement-breakpoint
CREATE INDEX `uploads_by_job` ON `uploads` (`job_id`);