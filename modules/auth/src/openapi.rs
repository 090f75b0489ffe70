//! The API's description (OpenAPI 3.1), made of the contract of the admin socket: paths, schemas, and the comments that the contract has of its
//! operations.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use prost_reflect::{Cardinality, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor};
use serde_json::{Value, json};

use crate::operations;

/// The document; the same for everybody, so that nobody has to be known to read it.
pub(crate) static DOCUMENT: LazyLock<String> = LazyLock::new(|| document().to_string());

/// Numbers of fields in the description of a file (descriptor.proto): its services, and a service's methods.
const SERVICE: i32 = 6;
const METHOD: i32 = 2;

fn document() -> Value {
    let mut schemas = BTreeMap::new();
    let mut paths = serde_json::Map::new();
    for operation in operations::all() {
        let (input, output) = (operation.method().input(), operation.method().output());
        add(&mut schemas, &input);
        add(&mut schemas, &output);
        let summary = comment(operation.method()).unwrap_or_else(|| operation.name.to_owned());
        let call = json!({
            "operationId": operation.name,
            "summary": summary,
            "tags": [if operation.changes_nothing { "reading" } else { "changing" }],
            "requestBody": { "required": true, "content": { "application/json": { "schema": reference(&input) } } },
            "responses": responses(&json!({ "application/json": { "schema": reference(&output) } })),
        });
        paths.insert(format!("/v1/node/{}", operation.name), json!({ "post": call }));
    }
    paths.insert("/v1/session".to_owned(), session());
    paths.insert("/v1/modules/{module}/{path}".to_owned(), modules());
    schemas.insert("Problem".to_owned(), problem());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "OpenRed operator's API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The operations of the node's admin socket, for its operator, on the machine's loopback alone. Log in with POST /v1/session; \
                every other request shows both the cookie and the token that it gave.",
            "license": { "name": "MIT", "identifier": "MIT" },
        },
        "security": [{ "cookie": [], "token": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "cookie": { "type": "apiKey", "in": "cookie", "name": crate::api::COOKIE },
                "token": { "type": "apiKey", "in": "header", "name": crate::api::TOKEN },
            },
        },
    })
}

fn responses(content: &Value) -> Value {
    let refused = json!({
        "description": "Refused: a problem document (RFC 9457) with a stable code.",
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
    });
    json!({ "200": { "description": "Done.", "content": content }, "4XX": refused, "5XX": refused })
}

fn text(description: &str) -> Value {
    json!({ "type": "string", "description": description })
}

fn session() -> Value {
    let time = json!({ "type": "integer", "format": "int64", "description": "Unix milliseconds." });
    let attempt = json!({
        "type": "object",
        "required": ["name", "password", "code"],
        "additionalProperties": false,
        "properties": { "name": text("Of the user."), "password": text("Of the user."), "code": text("Six digits of the authenticator.") },
    });
    let view = json!({
        "type": "object",
        "properties": { "v": { "type": "integer" }, "name": text("Of the user."), "role": text("operator or viewer."), "until": time },
    });
    let mut opened = view.clone();
    opened["properties"]["token"] = text("To be shown in the header on every request. It is told once.");
    let json_of = |schema: &Value| json!({ "application/json": { "schema": schema } });
    json!({
        "post": {
            "operationId": "Login",
            "summary": "Logs in: a new session, by a cookie and a token. Whatever is wrong, the answer is 401 `denied`.",
            "security": [],
            "requestBody": { "required": true, "content": json_of(&attempt) },
            "responses": responses(&json_of(&opened)),
        },
        "get": { "operationId": "ShowSession", "summary": "Who is logged in, and until when.", "responses": responses(&json_of(&view)) },
        "delete": { "operationId": "Logout", "summary": "Ends the session.", "responses": responses(&json!({})) },
    })
}

fn modules() -> Value {
    let parameter = |name: &str, description: &str| json!({ "name": name, "in": "path", "required": true, "description": description, "schema": { "type": "string" } });
    let call = |name: &str, summary: &str| {
        json!({
            "operationId": name,
            "summary": summary,
            "parameters": [parameter("module", "A module's id."), parameter("path", "Of an operator's route; may have slashes. Handed on as it is written; there is no query.")],
            "responses": responses(&json!({ "*/*": {} })),
        })
    };
    let mut post = call("PostToModule", "Calls an operator's route of a module; the body is the route's.");
    post["requestBody"] = json!({ "required": false, "content": { "*/*": {} } });
    json!({ "get": call("GetFromModule", "Calls an operator's route of a module."), "post": post })
}

fn problem() -> Value {
    let properties = json!({
        "type": text("A URN of the code."), "title": text("The code."), "status": { "type": "integer" },
        "code": text("Stable; docs/errors.md has its meaning and its way out."), "detail": text("For people."),
    });
    json!({ "type": "object", "required": ["code", "status"], "properties": properties })
}

fn reference(message: &MessageDescriptor) -> Value {
    json!({ "$ref": format!("#/components/schemas/{}", message.name()) })
}

fn add(schemas: &mut BTreeMap<String, Value>, message: &MessageDescriptor) {
    if schemas.contains_key(message.name()) {
        return;
    }
    schemas.insert(message.name().to_owned(), Value::Null);
    let fields = message.fields().map(|field| (field.name().to_owned(), schema(schemas, &field)));
    let properties: serde_json::Map<String, Value> = fields.collect();
    let schema = json!({ "type": "object", "additionalProperties": false, "properties": properties });
    schemas.insert(message.name().to_owned(), schema);
}

fn schema(schemas: &mut BTreeMap<String, Value>, field: &FieldDescriptor) -> Value {
    let one = match field.kind() {
        Kind::String => json!({ "type": "string" }),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Bytes => json!({ "type": "string", "contentEncoding": "base64" }),
        Kind::Double | Kind::Float => json!({ "type": "number" }),
        Kind::Uint32 | Kind::Fixed32 => json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX }),
        Kind::Uint64 | Kind::Fixed64 => json!({ "type": "integer", "format": "int64", "minimum": 0 }),
        Kind::Message(message) => {
            add(schemas, &message);
            reference(&message)
        }
        Kind::Enum(numbers) => {
            json!({ "enum": numbers.values().map(|value| value.name().to_owned()).collect::<Vec<_>>() })
        }
        _ => json!({ "type": "integer" }),
    };
    if field.cardinality() == Cardinality::Repeated { json!({ "type": "array", "items": one }) } else { one }
}

/// What the contract says of an operation, if it says something.
fn comment(method: &MethodDescriptor) -> Option<String> {
    let service = method.parent_service();
    let path = [SERVICE, i32::try_from(service.index()).ok()?, METHOD, i32::try_from(method.index()).ok()?];
    let file = service.parent_file();
    let source = file.file_descriptor_proto().source_code_info.as_ref()?;
    let place = source.location.iter().find(|location| location.path == path)?;
    let words = place.leading_comments.as_deref()?.split_whitespace().collect::<Vec<_>>().join(" ");
    (!words.is_empty()).then_some(words)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn it_describes_every_operation_and_everything_that_it_refers_to() {
        let document: Value = serde_json::from_str(&DOCUMENT).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        for (name, _) in operations::ALL {
            assert_eq!(document["paths"][format!("/v1/node/{name}")]["post"]["operationId"], name);
        }
        let text = document.to_string();
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document["components"]["schemas"][name]["type"] == "object", "{name}");
        }
        let drop = &document["paths"]["/v1/node/DropContact"]["post"]["summary"];
        assert_eq!(drop, "Ends a contact, whoever began it.");
        assert_eq!(document["components"]["schemas"]["Peers"]["properties"]["peers"]["type"], "array");
    }
}
