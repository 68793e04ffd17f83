//! Heads of HTTP/1.1 messages (RFC 9112), read by a library.

use httparse::{EMPTY_HEADER, Error, Header, Request, Response, Status};
use wasm_bindgen::prelude::*;

use crate::fail;

/// Fields of one head.
const FIELDS_MAX: usize = 128;

/// A head that was read.
#[wasm_bindgen]
pub struct Head {
    len: usize,
    first: String,
    second: String,
    minor: u8,
    fields: Vec<String>,
}

#[wasm_bindgen]
impl Head {
    /// Its length in bytes; the content follows.
    #[wasm_bindgen(getter)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The method of a request, the status code of a response.
    #[wasm_bindgen(getter)]
    pub fn first(&self) -> String {
        self.first.clone()
    }

    /// The target of a request, the reason of a response.
    #[wasm_bindgen(getter)]
    pub fn second(&self) -> String {
        self.second.clone()
    }

    /// The minor version: 0 or 1.
    #[wasm_bindgen(getter)]
    pub fn minor(&self) -> u8 {
        self.minor
    }

    /// Names and values of the fields, in turn.
    #[wasm_bindgen(getter)]
    pub fn fields(&self) -> Vec<String> {
        self.fields.clone()
    }
}

fn malformed(error: Error) -> JsValue {
    fail("EPROTO", &format!("that is no HTTP/1.1 message: {error}"))
}

fn read(fields: &[Header<'_>]) -> Vec<String> {
    // Values are octets; ISO 8859-1 keeps them as they are (RFC 9110, section 5.5).
    let value = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect();
    fields.iter().flat_map(|field| [field.name.to_owned(), value(field.value)]).collect()
}

/// Reads the head of a request; nothing if it is not whole yet.
#[wasm_bindgen(js_name = parseRequest)]
pub fn parse_request(bytes: &[u8]) -> Result<Option<Head>, JsValue> {
    let mut fields = [EMPTY_HEADER; FIELDS_MAX];
    let mut request = Request::new(&mut fields);
    let Status::Complete(len) = request.parse(bytes).map_err(malformed)? else {
        return Ok(None);
    };
    Ok(Some(Head {
        len,
        first: request.method.unwrap_or_default().to_owned(),
        second: request.path.unwrap_or_default().to_owned(),
        minor: request.version.unwrap_or_default(),
        fields: read(request.headers),
    }))
}

/// Reads the head of a response; nothing if it is not whole yet.
#[wasm_bindgen(js_name = parseResponse)]
pub fn parse_response(bytes: &[u8]) -> Result<Option<Head>, JsValue> {
    let mut fields = [EMPTY_HEADER; FIELDS_MAX];
    let mut response = Response::new(&mut fields);
    let Status::Complete(len) = response.parse(bytes).map_err(malformed)? else {
        return Ok(None);
    };
    Ok(Some(Head {
        len,
        first: response.code.unwrap_or_default().to_string(),
        second: response.reason.unwrap_or_default().to_owned(),
        minor: response.version.unwrap_or_default(),
        fields: read(response.headers),
    }))
}

/// The line before a chunk.
#[wasm_bindgen]
pub struct ChunkLine {
    /// Its length in bytes, line end included.
    pub len: usize,
    /// The bytes that follow.
    pub size: f64,
}

/// Reads the line before a chunk (RFC 9112, section 7.1); nothing if it is not whole yet.
#[wasm_bindgen(js_name = parseChunkLine)]
pub fn parse_chunk_line(bytes: &[u8]) -> Result<Option<ChunkLine>, JsValue> {
    // The library takes no digits for a size of none.
    if bytes.first().is_some_and(|first| !first.is_ascii_hexdigit()) {
        return Err(fail("EPROTO", "a chunk does not begin with its size"));
    }
    match httparse::parse_chunk_size(bytes) {
        Ok(Status::Complete((len, size))) => Ok(Some(ChunkLine { len, size: size as f64 })),
        Ok(Status::Partial) => Ok(None),
        Err(_) => Err(fail("EPROTO", "a chunk does not begin with its size")),
    }
}
