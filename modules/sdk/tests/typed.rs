//! Typed handlers and typed state, as an author uses them.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use bytes::Bytes;
use openred_module::{
    Batch, Body, Caller, Committed, Context, HostError, Json, Manifest, Method, Module, ModuleError, NodeId, Path,
    PeerRequest, Response, Routes, Status, Table, TestHost, async_trait,
};
use serde::{Deserialize, Serialize};

struct Library;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Book {
    title: String,
    #[serde(default)]
    lent: u32,
}

static BOOKS: Table<u64, Book> = Table::new("books");

/// An error of the module's own: handlers return it as it is.
struct NoBook(u64);

impl From<NoBook> for ModuleError {
    fn from(NoBook(number): NoBook) -> Self {
        Self::not_found("no-such-book", format!("there is no book {number}"))
    }
}

impl From<HostError> for NoBook {
    fn from(_: HostError) -> Self {
        Self(0)
    }
}

#[async_trait]
impl Module for Library {
    fn manifest(&self) -> Manifest {
        Manifest { id: "library", version: "1.0.0", summary: "for tests" }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.operator(Method::Post, "/books/{number}", 1024, Self::add);
        routes.operator(Method::Get, "/books/{number}", 0, Self::book);
        routes.operator(Method::Post, "/lend/{number}/{times}", 0, Self::lend);
        routes.operator(Method::Post, "/text", 16, Self::text);
        routes.operator(Method::Post, "/bytes", 16, Self::bytes);
        routes.operator(Method::Post, "/nothing", 0, Self::nothing);
        routes.operator(Method::Get, "/who", 0, Self::who);
        routes.peer(Method::Get, "/who", 0, Self::who_as_peer);
    }
}

impl Library {
    async fn add(
        self: Arc<Self>,
        context: Context,
        Path(number): Path<u64>,
        Json(book): Json<Book>,
    ) -> Result<(Status, Json<Book>), ModuleError> {
        BOOKS.put(&context, &number, &book).await?;
        Ok((Status::Created, Json(book)))
    }

    async fn book(self: Arc<Self>, context: Context, Path(number): Path<u64>) -> Result<Json<Book>, NoBook> {
        BOOKS.get(&context, &number).await?.map(Json).ok_or(NoBook(number))
    }

    async fn lend(
        self: Arc<Self>,
        Path((number, times)): Path<(u64, u32)>,
        context: Context,
    ) -> Result<String, ModuleError> {
        let lend = |book: Option<Book>| {
            let book = book.unwrap_or(Book { title: "unknown".into(), lent: 0 });
            Book { lent: book.lent + times, ..book }
        };
        let book = BOOKS.update(&context, &number, lend).await?;
        Ok(format!("{} {}", book.title, book.lent))
    }

    async fn text(self: Arc<Self>, text: String) -> Result<String, ModuleError> {
        Ok(text.to_uppercase())
    }

    async fn bytes(self: Arc<Self>, bytes: Bytes) -> Result<Bytes, ModuleError> {
        Ok(bytes)
    }

    async fn nothing(self: Arc<Self>) -> Result<(), ModuleError> {
        Ok(())
    }

    async fn who(self: Arc<Self>, caller: Caller) -> Result<String, ModuleError> {
        Ok(format!("{caller:?}"))
    }

    async fn who_as_peer(self: Arc<Self>, peer: NodeId) -> Result<String, ModuleError> {
        Ok(peer.to_string())
    }
}

async fn said(response: Response) -> (u16, String) {
    let status = response.status.code();
    (status, String::from_utf8(response.body.collect(4096).await.unwrap().into()).unwrap())
}

async fn post(host: &TestHost, path: &str, body: impl Into<Bytes>) -> (u16, String) {
    said(host.operator(PeerRequest::post(path, "", Body::whole(body))).await).await
}

#[tokio::test]
async fn handlers_get_what_they_name_and_their_results_become_answers() {
    let host = TestHost::start(1, Library).await;
    let book = r#"{"title":"Emma","lent":0}"#;
    assert_eq!(post(&host, "/books/7", book).await, (201, book.into()));
    assert_eq!(said(host.operator(PeerRequest::get("/books/7")).await).await, (200, book.into()));
    assert_eq!(post(&host, "/lend/7/3", "").await, (200, "Emma 3".into()));
    assert_eq!(post(&host, "/lend/8/1", "").await, (200, "unknown 1".into()));
    assert_eq!(post(&host, "/text", "abc").await, (200, "ABC".into()));
    assert_eq!(post(&host, "/bytes", "abc").await, (200, "abc".into()));
    assert_eq!(post(&host, "/nothing", "").await, (200, String::new()));
    assert_eq!(said(host.operator(PeerRequest::get("/who")).await).await, (200, "Operator".into()));
    let peer = NodeId::from_bytes([5; 32]);
    assert_eq!(said(host.as_peer(peer, PeerRequest::get("/who")).await).await, (200, peer.to_string()));
}

#[tokio::test]
async fn what_a_handler_cannot_have_refuses_the_call() {
    let host = TestHost::start(1, Library).await;
    for (path, body, status, code) in [
        ("/books/seven", &b"{}"[..], 400, "bad-path"),
        ("/books/7", b"{", 400, "bad-json"),
        ("/books/7", &[b' '; 2000], 413, "body-too-long"),
        ("/lend/7/x", b"", 400, "bad-path"),
        ("/text", b"\xff", 400, "not-utf8"),
        ("/nothing", b"x", 413, "body-too-long"),
    ] {
        let (answered, problem) = post(&host, path, body.to_vec()).await;
        assert!(answered == status && problem.contains(code), "{path}: {answered} {problem}");
    }
    let (status, problem) = said(host.operator(PeerRequest::get("/books/9")).await).await;
    assert!(status == 404 && problem.contains("no-such-book"), "an error of its own: {problem}");
}

#[tokio::test]
async fn tables_are_scanned_in_order_and_changed_under_expectations() {
    let host = TestHost::start(1, Library).await;
    let context = host.context();
    let other: Table<String, u32> = Table::new("bookshelf");
    other.put(&context, &"a".to_owned(), &1).await.unwrap();
    let book = |number: u64| Book { title: format!("book {number}"), lent: 0 };
    for number in [300, 2, 70_000, 1] {
        BOOKS.put(&context, &number, &book(number)).await.unwrap();
    }
    let first = BOOKS.scan(&context, None, 3).await.unwrap();
    assert_eq!(first.rows.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 300]);
    let rest = BOOKS.scan(&context, first.next, 3).await.unwrap();
    assert_eq!((rest.rows, rest.next), (vec![(70_000, book(70_000))], None));
    assert_eq!(BOOKS.all(&context).await.unwrap().len(), 4);
    // Read by two, changed by one.
    let (one, two) = (BOOKS.entry(&context, &1).await.unwrap(), BOOKS.entry(&context, &1).await.unwrap());
    assert_eq!(BOOKS.replace(&context, one, &book(11)).await.unwrap(), Committed::Yes);
    assert_eq!(BOOKS.replace(&context, two, &book(12)).await.unwrap(), Committed::No);
    // Changes of several rows, or of none.
    let entry = BOOKS.entry(&context, &2).await.unwrap();
    let both = |batch| BOOKS.put_in(BOOKS.delete_in(batch, &2), &3, &book(3)).unwrap();
    let committed = context.apply(both(BOOKS.expect_in(Batch::new(), &entry))).await.unwrap();
    assert_eq!(committed, Committed::Yes);
    let committed = context.apply(both(BOOKS.expect_in(Batch::new(), &entry))).await.unwrap();
    assert_eq!(committed, Committed::No, "the row is gone");
    assert_eq!(BOOKS.get(&context, &3).await.unwrap(), Some(book(3)));
    // A row of an older form, and one that is damaged.
    context.put("books/\0\0\0\0\0\0\0\x09", r#"{"title":"old"}"#).await.unwrap();
    assert_eq!(BOOKS.get(&context, &9).await.unwrap().unwrap().lent, 0);
    context.put("books/\0\0\0\0\0\0\0\x09", "{").await.unwrap();
    assert_eq!(BOOKS.get(&context, &9).await, Err(HostError::Storage));
}
