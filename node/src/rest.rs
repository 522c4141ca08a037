//! The REST face: JSON over HTTP/1.1 for what the services do, by the HTTP bindings of their descriptors.
//!
//! A request becomes the same gRPC call that an SDK would make and goes through the same gate, inside the process; the answer
//! becomes JSON. So there is nothing here that could allow more, or mean something else, than gRPC does. Every path answers
//! below `/api` and below `/api/v2`. `/api/docs/` is the description for people, `/api/docs/openapi.json` the one for
//! programs.
//!
//! - [`binding`]: which verb and path stand for which call, read from the descriptors.
//! - [`json`]: JSON and parameters to messages and back.
//! - [`gateway`]: one call, from HTTP request to HTTP response.
//! - [`openapi`]: the OpenAPI document, made from the same bindings.

pub mod binding;
pub mod gateway;
pub mod json;
pub mod openapi;

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::extract::connect_info::{Connected, IntoMakeServiceWithConnectInfo};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{MethodRouter, get, on};
use axum::serve::IncomingStream;
use utoipa_swagger_ui::Config as PageConfig;

use crate::health::HttpListener;
use crate::rest::binding::Binding;
use crate::rest::gateway::Gateway;
use crate::service::App;
use crate::throttle::Source;

/// Both lead to the same paths.
const PREFIXES: [&str; 2] = ["/api", "/api/v2"];
/// Where the OpenAPI document is.
const DOCUMENT: &str = "/api/docs/openapi.json";

/// All routes, for connections that tell where they come from.
pub fn service(app: &Arc<App>) -> IntoMakeServiceWithConnectInfo<Router, Source> {
    routes(app).into_make_service_with_connect_info()
}

impl Connected<IncomingStream<'_, HttpListener>> for Source {
    fn connect_info(stream: IncomingStream<'_, HttpListener>) -> Self {
        Self::of(stream.remote_addr())
    }
}

/// All routes.
pub fn routes(app: &Arc<App>) -> Router {
    let bindings = binding::all();
    let document: Arc<str> = openapi::document(&bindings).to_string().into();
    let gateway = Arc::new(Gateway::new(app));
    let mut api = Router::new();
    for binding in bindings {
        let path = binding.route();
        api = api.route(&path, call(&gateway, binding));
    }
    let mut routes = Router::new();
    for prefix in PREFIXES {
        routes = routes.nest(prefix, api.clone());
    }
    let page = Arc::new(PageConfig::from(DOCUMENT));
    routes
        .route("/", get(|| async { Redirect::temporary("/api/docs/") }))
        .route("/api/docs", get(|| async { Redirect::permanent("/api/docs/") }))
        .route(
            "/api/docs/",
            get({
                let page = page.clone();
                || async move { file("", page) }
            }),
        )
        .route("/api/docs/{file}", get(|Path(name): Path<String>| async move { file(&name, page) }))
        .route(DOCUMENT, get(|| async move { ([(header::CONTENT_TYPE, "application/json")], document.to_string()) }))
        .fallback(|| async { (StatusCode::NOT_FOUND, "Not Found\n") })
        .method_not_allowed_fallback(|| async { (StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n") })
}

/// The handler of a binding.
fn call(gateway: &Arc<Gateway>, binding: Binding) -> MethodRouter {
    let gateway = gateway.clone();
    let verb = binding.verb.filter();
    let binding = Arc::new(binding);
    on(verb, move |request: axum::extract::Request| async move { gateway.call(&binding, request).await })
}

/// A file of the page that describes the interface.
fn file(name: &str, page: Arc<PageConfig<'static>>) -> Response {
    match utoipa_swagger_ui::serve(name, page) {
        Ok(Some(file)) => ([(header::CONTENT_TYPE, file.content_type)], file.bytes.into_owned()).into_response(),
        Ok(None) => (StatusCode::NOT_FOUND, "Not Found\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
