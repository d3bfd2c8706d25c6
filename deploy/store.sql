-- The tables in which replicas of `mp4sr serve` keep items that were added to trained runs (docs/serving.md). The service creates them
-- if its user may create tables; otherwise the owner of the database must run this file and grant access to the user:
--   psql DATABASE -f deploy/store.sql
--   grant select, insert, update, delete on mp4sr_schema, mp4sr_runs, mp4sr_items, mp4sr_features, mp4sr_images to THE_USER;
--   grant usage on sequence mp4sr_position to THE_USER;
create table mp4sr_schema (version integer not null);
insert into mp4sr_schema values (1);
-- A run is identified by the names of its dataset and its own; `dataset` is the hash of the dataset's item ids, `change` counts changes.
create table mp4sr_runs (run text primary key, dataset text not null, change bigint not null);
create sequence mp4sr_position;
-- The added items: `texts` is JSON with the title, sentences, categories and file names; `position` gives the order.
create table mp4sr_items (
    run text not null references mp4sr_runs on delete cascade, item_id text not null, position bigint not null, texts text not null,
    primary key (run, item_id)
);
create index mp4sr_items_in_order on mp4sr_items (run, position);
-- The features of an item by modality: rows of `width` values of the type `kind` (f16, bf16, f32), little endian.
create table mp4sr_features (
    run text not null, item_id text not null, modality text not null, encoder text not null, width integer not null,
    kind text not null, rows bytea not null,
    primary key (run, item_id, modality), foreign key (run, item_id) references mp4sr_items on delete cascade
);
create table mp4sr_images (
    run text not null, item_id text not null, number integer not null, file bytea not null,
    primary key (run, item_id, number), foreign key (run, item_id) references mp4sr_items on delete cascade
);
