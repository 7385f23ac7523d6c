//! The OpenAPI document: made from the router's own table, with the bodies' schemas from `schemas.json`.

use serde_json::{Map, Value, json};

/// What the document says of one method of one path.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) summary: &'static str,
    /// Schema of the body; none where it takes none.
    pub(crate) takes: Option<&'static str>,
    /// Schema of the answer.
    pub(crate) gives: &'static str,
}

/// Errors that any operation may end with, as the wire maps them.
const ERRORS: [(&str, &str); 6] = [
    ("400", "The request does not fit; the text names the input and the way to mend it"),
    ("404", "No such model, version or path"),
    ("429", "Too many requests wait; try again after `Retry-After` seconds"),
    ("500", "The engine failed"),
    ("503", "Loading, unloading or draining"),
    ("504", "The request's time ran out in the queue"),
];

/// The whole document, OpenAPI 3.1.
pub(crate) fn document<'a>(operations: impl Iterator<Item = &'a Operation>) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for operation in operations {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = described(operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Edgeward",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "ONNX models over the Open Inference Protocol v2",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": schemas() },
    })
}

fn schemas() -> Value {
    // The file is part of the program; a test reads it.
    serde_json::from_str(include_str!("openapi/schemas.json")).unwrap_or_default()
}

fn described(operation: &Operation) -> Value {
    let schema = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let mut content = match operation.gives {
        "Page" => json!({ "text/html": { "schema": { "type": "string" } } }),
        name => json!({ "application/json": { "schema": schema(name) } }),
    };
    if operation.gives == "InferResponse" {
        // JSON of `Inference-Header-Content-Length` bytes, then the binary tensors.
        content["application/octet-stream"] = json!({});
    }
    let mut responses = json!({ "200": { "description": "Done", "content": content } });
    for (status, description) in ERRORS {
        let content = json!({ "application/json": { "schema": schema("Error") } });
        responses[status] = json!({ "description": description, "content": content });
    }
    let id: String = operation.path.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let mut out = json!({
        "operationId": format!("{}{id}", operation.method),
        "summary": operation.summary,
        "parameters": parameters(operation),
        "responses": responses,
    });
    if let Some(takes) = operation.takes {
        let mut content = json!({ "application/json": { "schema": schema(takes) } });
        if takes == "InferRequest" {
            content["application/octet-stream"] = json!({});
        }
        out["requestBody"] = json!({ "required": takes == "InferRequest", "content": content });
    }
    out
}

fn parameters(operation: &Operation) -> Value {
    let names = operation.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut all: Vec<Value> = names
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    if operation.takes == Some("InferRequest") {
        let headers = [
            ("Inference-Header-Content-Length", "integer", "Bytes of JSON before the binary tensors"),
            ("Content-Encoding", "string", "`gzip` or `deflate`"),
            ("traceparent", "string", "W3C trace context of the caller"),
        ];
        all.extend(headers.map(|(name, kind, description)| {
            json!({ "name": name, "in": "header", "description": description, "schema": { "type": kind } })
        }));
    }
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_that_is_named_is_there_and_none_is_idle() {
        let schemas: Map<String, Value> = serde_json::from_str(include_str!("openapi/schemas.json")).unwrap();
        let document = crate::http::operations_document().to_string();
        for name in schemas.keys() {
            assert!(document.contains(&format!("#/components/schemas/{name}\"")), "`{name}` is not used");
        }
        for part in document.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "`{name}` is not defined");
        }
    }
}
