//! The routes of the service and their handlers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, MatchedPath, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use mp4sr_artifact::{Downloads, json_problem};
use mp4sr_items::ItemRecord;
use mp4sr_pipeline::error_chain;
use mp4sr_pipeline::text::{quoted, some_of};
use mp4sr_recommend::{Answer, CandidateItems, RunCatalogue, expect_candidates};
use mp4sr_store::ItemStore;
use serde::de::DeserializeOwned;
use serde_json::json;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use crate::admission::admitted;
use crate::api::{
    DeleteItemsRequest, DeleteItemsResponse, ItemResponse, ListResponse, ListedItem, NewItem, PutItemsRequest,
    PutItemsResponse, RecommendRequest, SearchQuery, SearchResponse, SimilarRequest, StatusResponse,
};
use crate::changes::{changed, internal, is_of_machine, not_changed};
use crate::engine::{Generation, Similar, SimilarTo, Task};
use crate::error::{ApiError, ErrorBody};
use crate::limits::{IMAGES, ITEM_TIME, SEARCHED, TEXTS};
use crate::log::log;
use crate::metrics::{RequestLabels, RouteLabels};
use crate::paths;
use crate::state::App;

/// The header with the id of a request, which also appears in the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The maximum length of an id that is taken from a request.
const LONGEST_REQUEST_ID: usize = 200;
/// The route label of requests to paths that the service does not have.
const UNKNOWN_ROUTE: &str = "unknown";
/// The maximum length of a text whose similar items are listed, in bytes.
const TEXT_LIMIT: usize = 100_000;

/// The length of a list if the request gives none.
const DEFAULT_LENGTH: usize = 10;

/// The id under which a text or an image that is not in the catalogue is encoded.
const ASKED: &str = "asked";

type Result<T> = std::result::Result<T, ApiError>;
type Shared = State<Arc<App>>;

/// The OpenAPI description of the service.
#[derive(OpenApi)]
#[openapi(
    info(title = "mp4sr", description = "Recommendations of a trained run, by original ids."),
    paths(recommend, similar, put_items, delete_items, item, image, search, healthz, readyz, metrics),
    components(schemas(ErrorBody)),
    modifiers(&KeySecurity, &EveryPath),
    security((), ("key" = []))
)]
struct Description;

/// Adds the keys to the description; they are optional there because a service may have none.
struct KeySecurity;

impl Modify for KeySecurity {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        description.components.get_or_insert_default().add_security_scheme("key", scheme);
    }
}

/// Adds the answers that every path may give: to a request for another host, and to a body that is slow, large, compressed or one of too
/// many large ones.
struct EveryPath;

impl Modify for EveryPath {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let schema = utoipa::openapi::Ref::from_schema_name("ErrorBody");
        let content = utoipa::openapi::content::ContentBuilder::new().schema(Some(schema)).build();
        let response = utoipa::openapi::ResponseBuilder::new().content("application/json", content).build();
        for path in description.paths.paths.values_mut() {
            for operation in [&mut path.post, &mut path.put, &mut path.delete].into_iter().flatten() {
                for status in ["408", "413", "415", "429"] {
                    operation.responses.responses.insert(status.to_owned(), response.clone().into());
                }
            }
            let operations = [&mut path.get, &mut path.post, &mut path.put, &mut path.delete];
            for operation in operations.into_iter().flatten() {
                operation.responses.responses.insert("421".to_owned(), response.clone().into());
            }
        }
    }
}

/// All routes.
pub fn router(app: &Arc<App>) -> axum::Router {
    axum::Router::new()
        .route(paths::RECOMMEND, post(recommend))
        .route(paths::SIMILAR, post(similar))
        .route(paths::ITEMS, get(search).put(put_items).delete(delete_items))
        .route(paths::ITEM, get(item))
        .route(paths::IMAGE, get(image))
        .route(paths::HEALTH, get(healthz))
        .route(paths::READY, get(readyz))
        .route(paths::METRICS, get(metrics))
        .route(paths::DESCRIPTION, get(openapi))
        .route(paths::PAGE, get(page))
        .route(paths::SCRIPT, get(script))
        .route(paths::STYLE, get(style))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), observe))
        // Bodies have been read, and limited, before a handler sees them.
        .layer(DefaultBodyLimit::disable())
        .with_state(app.clone())
}

/// Lists the best items for a history.
#[utoipa::path(
    post, path = "/v1/recommend", request_body = RecommendRequest,
    responses(
        (status = 200, body = ListResponse), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 422, body = ErrorBody), (status = 429, body = ErrorBody),
        (status = 503, body = ErrorBody)
    )
)]
async fn recommend(State(app): Shared, uri: Uri, body: Bytes) -> Result<Json<ListResponse>> {
    let deadline = app.deadline();
    expect_no_query(&uri)?;
    let asked: RecommendRequest = parse(&body)?;
    let k = within(&app, "k", asked.k)?;
    expect_within(&app, &asked.exclude, asked.only.as_deref())?;
    if asked.history.len() > app.limits.history {
        return Err(ApiError::invalid(format!("`history` has more than {} ids", app.limits.history)));
    }
    let generation = app.generation()?;
    if app.log_histories {
        log("info", &json!({ "event": "history", "history": asked.history, "user_id": asked.user_id }));
    }
    let Selection { allowed, removed, unknown } = select(&generation.catalogue, &asked.exclude, asked.only.as_deref())?;
    let RecommendRequest { history, user_id, .. } = asked;
    let request = mp4sr_recommend::Request { user: user_id, history, k, allowed, removed };
    let answer = generation.ask(Task::Recommend(request), deadline).await?;
    if answer.list.is_empty() {
        return Err(ApiError::refused(
            "no item may be listed, because the items of the history are not recommended again (`evaluate.seen_items`); change `only` or \
             `exclude`",
        ));
    }
    Ok(Json(listed(&generation, answer, unknown)))
}

/// Lists the items that are similar to an item, a text or an image: those whose vectors in the model are nearest.
#[utoipa::path(
    post, path = "/v1/similar", request_body = SimilarRequest,
    responses(
        (status = 200, body = ListResponse), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 413, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 429, body = ErrorBody), (status = 503, body = ErrorBody)
    )
)]
async fn similar(State(app): Shared, uri: Uri, body: Bytes) -> Result<Json<ListResponse>> {
    let deadline = app.deadline();
    expect_no_query(&uri)?;
    let asked: SimilarRequest = parse(&body)?;
    let k = within(&app, "k", asked.k)?;
    expect_within(&app, &asked.exclude, asked.only.as_deref())?;
    let generation = app.generation()?;
    let Selection { allowed, mut removed, unknown } =
        select(&generation.catalogue, &asked.exclude, asked.only.as_deref())?;
    let of = match (&asked.item_id, &asked.text, &asked.image) {
        (Some(id), None, None) => {
            let item = generation.catalogue.item(id).ok_or_else(|| no_item(id))?;
            removed.push(item);
            removed.sort_unstable();
            expect_some(&generation.catalogue, allowed.as_ref(), &removed)?;
            SimilarTo::Item(item)
        }
        (None, text, image) if text.is_some() || image.is_some() => {
            if text.as_ref().is_some_and(|text| text.len() > TEXT_LIMIT) {
                return Err(ApiError::invalid(format!("`text` has more than {TEXT_LIMIT} bytes")));
            }
            let images = image.iter().map(|image| decoded("`image`", image)).collect::<Result<Vec<_>>>()?;
            let texts = text.iter().cloned().collect();
            let record = ItemRecord { id: ASKED.to_owned(), texts, images, ..ItemRecord::default() };
            let given = [("`text`", text.is_some()), ("`image`", image.is_some())];
            let fields: Vec<&str> = given.iter().filter(|(_, is_given)| *is_given).map(|(name, _)| *name).collect();
            encoded(&app, &generation, record, &fields.join(" and ")).await?
        }
        _ => return Err(ApiError::invalid("give either `item_id`, or at least one of `text` and `image`")),
    };
    let answer = generation.ask(Task::Similar(Similar { of, k, allowed, removed }), deadline).await?;
    Ok(Json(listed(&generation, answer, unknown)))
}

/// Encodes an item that is not in the catalogue and is described by `fields` of the request. Requests take turns.
async fn encoded(app: &Arc<App>, generation: &Arc<Generation>, record: ItemRecord, fields: &str) -> Result<SimilarTo> {
    let permit = app.encoding.clone().acquire_owned().await.map_err(|e| ApiError::internal(&e.to_string()))?;
    let (generation, encoders) = (generation.clone(), app.encoders.clone());
    let encode = move || {
        // The permit is held until the work is done, even if the client has disconnected.
        let _permit = permit;
        // The artifacts may be read-only here.
        let folder = tempfile::tempdir().context("failed to create a temporary folder")?;
        let context = &generation.context;
        encoders.with(context, |own| mp4sr_items::encode_alone(context, own, &record, folder.path()))
    };
    let new = tokio::task::spawn_blocking(encode).await.map_err(|e| ApiError::internal(&e.to_string()))?;
    new.map(|new| SimilarTo::Features(Box::new(new))).map_err(|error| {
        if is_of_machine(&error) {
            internal(&error)
        } else {
            ApiError::refused(format!("{fields}: {}", error_chain(&error)))
        }
    })
}

/// Adds items to the run, which ranks them without further training. They are kept when the service restarts.
#[utoipa::path(
    put, path = "/v1/items", request_body = PutItemsRequest,
    responses(
        (status = 200, body = PutItemsResponse), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 422, body = ErrorBody), (status = 500, body = ErrorBody), (status = 503, body = ErrorBody)
    )
)]
async fn put_items(State(app): Shared, uri: Uri, body: Bytes) -> Result<Json<PutItemsResponse>> {
    expect_no_query(&uri)?;
    let PutItemsRequest { items } = parse(&body)?;
    if items.is_empty() {
        return Err(ApiError::invalid("`items` is empty"));
    }
    let records = items.into_iter().map(record).collect::<Result<Vec<ItemRecord>>>()?;
    let encoders = app.encoders.clone();
    let (added, generation) =
        changed(app, move |context, editor| encoders.with(context, |encoders| editor.add_records(encoders, &records)))
            .await?;
    Ok(Json(PutItemsResponse {
        added: added.new,
        replaced: added.replaced,
        notes: added.notes,
        new_items: added.total,
        generation: generation.number,
    }))
}

fn record(item: NewItem) -> Result<ItemRecord> {
    let NewItem { item_id, title, texts, categories, images } = item;
    if item_id.trim().is_empty() {
        return Err(ApiError::invalid("an item has an empty `item_id`"));
    }
    if item_id.contains('\0') {
        return Err(ApiError::invalid(format!("the `item_id` {} has a null character", quoted(&item_id))));
    }
    if texts.len() > TEXTS {
        return Err(ApiError::invalid(format!("`texts` of the item {} has more than {TEXTS} texts", quoted(&item_id))));
    }
    if images.len() > IMAGES {
        return Err(ApiError::invalid(format!(
            "`images` of the item {} has more than {IMAGES} images",
            quoted(&item_id)
        )));
    }
    let field = |number: usize| format!("`images` of the item {}, number {number},", quoted(&item_id));
    let images = (1..).zip(&images).map(|(number, image)| decoded(&field(number), image));
    let images = images.collect::<Result<Vec<_>>>()?;
    Ok(ItemRecord { id: item_id, title, texts, categories, images })
}

fn decoded(field: &str, text: &str) -> Result<Vec<u8>> {
    // The data URL of a page works, too.
    let text = text.split_once(";base64,").filter(|(head, _)| head.starts_with("data:")).map_or(text, |(_, rest)| rest);
    let bytes = base64::engine::general_purpose::STANDARD.decode(text.trim());
    bytes.map_err(|error| ApiError::invalid(format!("{field} is not base64: {error}")))
}

/// Removes items that were added to the run. Items of the dataset stay; `exclude` keeps them out of a list.
#[utoipa::path(
    delete, path = "/v1/items", request_body = DeleteItemsRequest,
    responses(
        (status = 200, body = DeleteItemsResponse), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 422, body = ErrorBody), (status = 500, body = ErrorBody), (status = 503, body = ErrorBody)
    )
)]
async fn delete_items(State(app): Shared, uri: Uri, body: Bytes) -> Result<Json<DeleteItemsResponse>> {
    expect_no_query(&uri)?;
    let DeleteItemsRequest { item_ids } = parse(&body)?;
    if item_ids.is_empty() {
        return Err(ApiError::invalid("`item_ids` is empty"));
    }
    let (removed, generation) = changed(app, move |_, editor| editor.remove(&item_ids)).await?;
    Ok(Json(DeleteItemsResponse { removed, generation: generation.number }))
}

/// Returns an item of the run.
#[utoipa::path(
    get, path = "/v1/items/{id}", params(("id" = String, Path, description = "The item's id")),
    responses(
        (status = 200, body = ItemResponse), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)
    )
)]
async fn item(
    State(app): Shared,
    path: std::result::Result<Path<String>, PathRejection>,
) -> Result<Json<ItemResponse>> {
    let Path(id) = path.map_err(|_| ApiError::not_utf8())?;
    let generation = app.generation()?;
    let catalogue = &generation.catalogue;
    let item = catalogue.item(&id).ok_or_else(|| no_item(&id))?;
    let row = item as usize - 1;
    Ok(Json(ItemResponse {
        title: catalogue.title(item).to_owned(),
        sentences: catalogue.items.sentences[row].clone(),
        categories: catalogue.items.categories[row].clone(),
        images: (0..catalogue.items.images[row].len()).map(|number| image_path(catalogue.id(item), number)).collect(),
        events: catalogue.events[row],
        is_new: row >= catalogue.items.len() - catalogue.new_items,
        item_id: catalogue.id(item).to_owned(),
    }))
}

/// Returns an image of an item, as it was stored.
#[utoipa::path(
    get, path = "/v1/items/{id}/images/{number}",
    params(("id" = String, Path, description = "The item's id"), ("number" = usize, Path, description = "From 0")),
    responses(
        (status = 200, description = "The file", content_type = "image/*"), (status = 400, body = ErrorBody),
        (status = 401, body = ErrorBody), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)
    )
)]
async fn image(
    State(app): Shared,
    path: std::result::Result<Path<(String, String)>, PathRejection>,
) -> Result<Response> {
    let Path((id, number)) = path.map_err(|_| ApiError::not_utf8())?;
    let generation = app.generation()?;
    let number: usize =
        number.parse().map_err(|_| ApiError::invalid("the number of an image must be a whole number from 0"))?;
    let item = generation.catalogue.item(&id).ok_or_else(|| no_item(&id))?;
    let names = &generation.catalogue.items.images[item as usize - 1];
    let name = names.get(number).ok_or_else(|| ApiError::no_image(&id, names.len()))?;
    let is_new = item as usize > generation.catalogue.items.len() - generation.catalogue.new_items;
    let bytes = match &*app.store {
        ItemStore::Postgres(_) if is_new => stored_image(&app, id, number).await?,
        _ => {
            let data = std::path::Path::new(&generation.context.config.dataset.data);
            let path = Downloads::new(data).file(name);
            match tokio::fs::read(&path).await {
                Ok(bytes) => Some(bytes),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => {
                    let reason = format!("failed to read `{}`: {error}", path.display());
                    log("error", &json!({ "event": "failed to read an image", "error": reason }));
                    return Err(ApiError::internal("the file of the image cannot be read; see the log"));
                }
            }
        }
    };
    let bytes = bytes.ok_or_else(|| ApiError::not_found("the file of the image is missing"))?;
    let kind = image_kind(&bytes).ok_or_else(|| ApiError::not_found("the file is not an image that browsers show"))?;
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "private, max-age=300"),
    ];
    Ok((headers, bytes).into_response())
}

/// The image of an added item that is kept in PostgreSQL.
async fn stored_image(app: &App, id: String, number: usize) -> Result<Option<Vec<u8>>> {
    let permit = app.stored_images.clone().acquire_owned().await.map_err(|e| ApiError::internal(&e.to_string()))?;
    let store = app.store.clone();
    let ask = move || {
        let _permit = permit;
        match &*store {
            ItemStore::Folder => Ok(None),
            ItemStore::Postgres(store) => store.image(&id, number),
        }
    };
    let found = tokio::task::spawn_blocking(ask).await.map_err(|e| ApiError::internal(&e.to_string()))?;
    found.map_err(|error| not_changed(app, &error.into()))
}

/// The media type of an image that browsers show.
fn image_kind(bytes: &[u8]) -> Option<&'static str> {
    mp4sr_image::media_type(bytes).filter(|kind| *kind != "image/tiff")
}

/// Searches items by words of their titles or parts of their ids.
#[utoipa::path(
    get, path = "/v1/items", params(SearchQuery),
    responses(
        (status = 200, body = SearchResponse), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 503, body = ErrorBody)
    )
)]
async fn search(
    State(app): Shared,
    query: std::result::Result<Query<SearchQuery>, QueryRejection>,
) -> Result<Json<SearchResponse>> {
    let Query(SearchQuery { q, limit }) = query.map_err(|error| {
        ApiError::invalid(error.body_text().replace("Failed to deserialize query string", "the URL"))
    })?;
    let limit = within(&app, "limit", limit)?;
    if q.contains(char::REPLACEMENT_CHARACTER) {
        return Err(ApiError::invalid("`q` is not UTF-8".to_owned()));
    }
    if q.len() > SEARCHED {
        return Err(ApiError::invalid(format!("`q` has more than {SEARCHED} bytes")));
    }
    let generation = app.generation()?;
    let permit = app.searches.clone().acquire_owned().await.map_err(|e| ApiError::internal(&e.to_string()))?;
    let work = move || {
        let _permit = permit;
        let catalogue = &generation.catalogue;
        let words: BTreeSet<String> = q.split_whitespace().map(str::to_lowercase).collect();
        let matches = |item: u32| {
            let (title, id) = (catalogue.title(item).to_lowercase(), catalogue.id(item).to_lowercase());
            words.iter().all(|word| title.contains(word) || id.contains(word))
        };
        let found = catalogue.by_events().filter(|&(item, _)| matches(item)).take(limit);
        found.map(|(item, events)| listed_item(catalogue, item, events)).collect()
    };
    let items = tokio::task::spawn_blocking(work).await.map_err(|e| ApiError::internal(&e.to_string()))?;
    Ok(Json(SearchResponse { items }))
}

/// Reports whether the service is alive.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = StatusResponse)))]
async fn healthz() -> Json<StatusResponse> {
    let status = "ok".to_owned();
    Json(StatusResponse {
        status,
        generation: None,
        model: None,
        items: None,
        search: None,
        store: None,
        failed_reloads: None,
    })
}

/// Reports whether a run is in service, and which one.
#[utoipa::path(
    get, path = "/readyz",
    responses((status = 200, body = StatusResponse), (status = 500, body = ErrorBody), (status = 503, body = ErrorBody))
)]
async fn readyz(State(app): Shared) -> Result<Json<StatusResponse>> {
    let generation = app.generation()?;
    if !generation.is_alive() {
        return Err(ApiError::internal("the thread of the model has ended; start the service again"));
    }
    Ok(Json(StatusResponse {
        status: "ok".to_owned(),
        generation: Some(generation.number),
        model: Some(generation.model.clone()),
        items: Some(generation.catalogue.items.len()),
        search: Some(generation.search.clone()),
        store: match &*app.store {
            ItemStore::Folder => None,
            ItemStore::Postgres(_) => {
                let is_up = app.store_is_up.load(Ordering::Relaxed);
                Some(if is_up { "reachable" } else { "unreachable" }.to_owned())
            }
        },
        failed_reloads: Some(app.failed_reloads()),
    }))
}

/// Returns metrics for Prometheus.
#[utoipa::path(
    get, path = "/metrics",
    responses((status = 200, description = "OpenMetrics", content_type = "application/openmetrics-text"), (status = 401, body = ErrorBody))
)]
async fn metrics(State(app): Shared) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics.text()).into_response()
}

async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Description::openapi())
}

async fn page() -> Response {
    // The page loads nothing from other hosts, and sends nothing to them.
    let policy = "default-src 'none'; img-src 'self' blob:; script-src 'self'; style-src 'self'; connect-src 'self'; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy)];
    (headers, include_str!("page/index.html")).into_response()
}

async fn script() -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("page/page.js")).into_response()
}

async fn style() -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("page/page.css")).into_response()
}

async fn unknown(uri: Uri) -> ApiError {
    ApiError::not_found(format!("the path {} does not exist", quoted(uri.path())))
}

async fn wrong_method() -> ApiError {
    ApiError::wrong_method()
}

/// Admits or rejects a request, gives it an id and a time limit, counts it and logs it.
async fn observe(State(app): Shared, request: Request, next: Next) -> Response {
    let id = given_id(request.headers()).unwrap_or_else(|| app.request_id());
    let matched = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = matched.unwrap_or_else(|| UNKNOWN_ROUTE.to_owned());
    let method = request.method().clone();
    let limit = if paths::changes_items(&method, &route) { ITEM_TIME } else { app.limits.time };
    let mut observed = Observed {
        app: app.clone(),
        start: std::time::Instant::now(),
        id: id.clone(),
        route: route.clone(),
        method,
        status: CLIENT_CLOSED,
    };
    let mut response = match admitted(&app, request, &route).await {
        Err(refusal) => refusal.into_response(),
        Ok((request, _permit)) => match tokio::time::timeout(limit, next.run(request)).await {
            Ok(response) => response,
            Err(_) => ApiError::too_slow().into_response(),
        },
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    observed.status = response.status().as_u16();
    response
}

/// The status in the log and in the metrics of a request whose client disconnects before it is answered.
const CLIENT_CLOSED: u16 = 499;

/// A request that is being answered. When it ends, even because its client has disconnected, it is counted and logged.
struct Observed {
    app: Arc<App>,
    start: std::time::Instant,
    id: String,
    route: String,
    method: Method,
    status: u16,
}

impl Drop for Observed {
    fn drop(&mut self) {
        let Self { app, start, id, route, method, status } = self;
        let took = start.elapsed();
        let status = if std::thread::panicking() { StatusCode::INTERNAL_SERVER_ERROR.as_u16() } else { *status };
        let labels = RequestLabels { route: route.clone(), method: known_method(method), status };
        app.metrics.requests.get_or_create(&labels).inc();
        app.metrics.seconds.get_or_create(&RouteLabels { route: route.clone() }).observe(took.as_secs_f64());
        let level = if status == StatusCode::INTERNAL_SERVER_ERROR.as_u16() { "error" } else { "info" };
        let fields = json!({
            "event": "request", "request_id": id, "method": method.as_str(), "route": route, "status": status,
            "milliseconds": took.as_secs_f64() * 1e3,
        });
        log(level, &fields);
    }
}

/// The method label of a request. Methods that clients make up share one label, so that they cannot create counters without bound.
fn known_method(method: &Method) -> String {
    let known = [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS, Method::PATCH];
    if known.contains(method) { method.to_string() } else { "other".to_owned() }
}

/// The id that the client gave the request, if it is valid.
fn given_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let is_sound = (1..=LONGEST_REQUEST_ID).contains(&id.len()) && id.chars().all(|c| c.is_ascii_graphic());
    is_sound.then(|| id.to_owned())
}

/// Refuses parameters in the URL of a request that has a body, because they would have no effect.
fn expect_no_query(uri: &Uri) -> Result<()> {
    match uri.query() {
        None | Some("") => Ok(()),
        Some(query) => {
            Err(ApiError::invalid(format!("the URL has the parameters {}; write them in the body", quoted(query))))
        }
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    // Structs can also be read from arrays, which the description does not allow.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(ApiError::invalid("the body is not a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| ApiError::invalid(format!("the body: {}", json_problem(&error))))
}

/// The length of a list as a request asks for it; without one, the default.
fn within(app: &App, field: &str, length: Option<usize>) -> Result<usize> {
    let most = app.limits.top;
    match length {
        None => Ok(most.min(DEFAULT_LENGTH)),
        Some(length) if (1..=most).contains(&length) => Ok(length),
        Some(length) => Err(ApiError::invalid(format!("`{field}` is {length}, expected 1 to {most}"))),
    }
}

fn expect_within(app: &App, exclude: &[String], only: Option<&[String]>) -> Result<()> {
    for (name, ids) in [("exclude", exclude), ("only", only.unwrap_or_default())] {
        if ids.len() > app.limits.ids {
            return Err(ApiError::invalid(format!("`{name}` has more than {} ids", app.limits.ids)));
        }
    }
    Ok(())
}

/// The items of a catalogue to which `exclude` and `only` refer.
struct Selection {
    allowed: Option<Arc<Vec<bool>>>,
    /// Items, ascending.
    removed: Vec<u32>,
    unknown: UnknownIds,
}

/// The ids of a request's selection that are not items of the run.
struct UnknownIds {
    exclude: Vec<String>,
    only: Vec<String>,
}

fn select(catalogue: &RunCatalogue, exclude: &[String], only: Option<&[String]>) -> Result<Selection> {
    let (mut removed, unknown_exclude) = resolved(catalogue, exclude);
    removed.sort_unstable();
    removed.dedup();
    let (allowed, unknown_only) = match only {
        None => (None, Vec::new()),
        Some([]) => return Err(ApiError::refused("`only` has no id; leave it out to list any item")),
        Some(ids) => {
            let (items, unknown) = resolved(catalogue, ids);
            if items.is_empty() {
                let named = some_of(&unknown.iter().map(String::as_str).collect::<Vec<_>>());
                return Err(ApiError::refused(format!("no id of `only` is an item of the run ({named})")));
            }
            let mut allowed = vec![false; catalogue.items.len()];
            items.iter().for_each(|&item| allowed[item as usize - 1] = true);
            (Some(Arc::new(allowed)), unknown)
        }
    };
    expect_some(catalogue, allowed.as_ref(), &removed)?;
    Ok(Selection { allowed, removed, unknown: UnknownIds { exclude: unknown_exclude, only: unknown_only } })
}

/// Refuses a selection that leaves no item.
fn expect_some(catalogue: &RunCatalogue, allowed: Option<&Arc<Vec<bool>>>, removed: &[u32]) -> Result<()> {
    let candidates = CandidateItems { allowed: allowed.map(|allowed| allowed.as_slice()), removed };
    expect_candidates(candidates, catalogue.items.len()).map_err(|error| ApiError::refused(error.to_string()))
}

/// The items with these ids, 1-based, and the ids that no item has.
fn resolved(catalogue: &RunCatalogue, ids: &[String]) -> (Vec<u32>, Vec<String>) {
    let (mut items, mut unknown) = (Vec::with_capacity(ids.len()), Vec::new());
    for id in ids {
        match catalogue.item(id) {
            Some(item) => items.push(item),
            None => unknown.push(id.clone()),
        }
    }
    (items, unknown)
}

fn listed(generation: &Generation, answer: Answer, unknown: UnknownIds) -> ListResponse {
    let Answer { list, unknown: in_history, fallback } = answer;
    ListResponse {
        items: list.iter().map(|&(item, score)| listed_item(&generation.catalogue, item, score)).collect(),
        fallback: fallback.map(|fallback| fallback.name().to_owned()),
        unknown: in_history,
        unknown_exclude: unknown.exclude,
        unknown_only: unknown.only,
        generation: generation.number,
    }
}

fn listed_item(catalogue: &RunCatalogue, item: u32, score: f32) -> ListedItem {
    let id = catalogue.id(item);
    let image = (!catalogue.items.images[item as usize - 1].is_empty()).then(|| image_path(id, 0));
    ListedItem { item_id: id.to_owned(), title: catalogue.title(item).to_owned(), score, image }
}

fn image_path(id: &str, number: usize) -> String {
    let mut path = String::from("/v1/items/");
    for byte in id.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => path.push(char::from(byte)),
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
    format!("{path}/images/{number}")
}

fn no_item(id: &str) -> ApiError {
    ApiError::not_found(format!("{} is not an item of the run", quoted(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_percent_encoded_in_paths_byte_by_byte() {
        assert_eq!(image_path("a/b c?é", 2), "/v1/items/a%2Fb%20c%3F%C3%A9/images/2");
    }
}
