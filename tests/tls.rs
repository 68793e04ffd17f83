//! Signaling over TLS, with certificates that no authority has signed: who trusts them, and what is said if not.

#[allow(dead_code, reason = "it serves every test of the tool")]
mod support;

use std::fs;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use support::{Ended, Place, Process};

const HOST: &str = "127.0.0.1";

/// What a certificate for a name says by itself.
fn about(name: &str) -> CertificateParams {
    CertificateParams::new([name.to_owned()]).unwrap()
}

/// Writes a certificate that signs itself to `NAME.pem`, and its key to `NAME.key`.
fn write(place: &Place, name: &str, about: &CertificateParams) {
    let key = KeyPair::generate().unwrap();
    fs::write(place.path(&format!("{name}.pem")), about.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(place.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
}

/// Starts a server with the files of `NAME`, and tells later programs of it.
fn serve(place: &mut Place, name: &str) -> Process {
    let (certificate, key) = (format!("{name}.pem"), format!("{name}.key"));
    let server = place.signal(&["--listen", "127.0.0.1:0", "--tls-cert", &certificate, "--tls-key", &key]);
    assert!(place.url.starts_with("wss://127.0.0.1:"), "{}", place.url);
    server
}

/// Lets later programs trust the certificates of a file.
fn trust(place: &mut Place, file: &str) {
    place.prefix = vec!["env".to_owned(), format!("SSL_CERT_FILE={}", place.path(file).display())];
}

/// Asserts an exit code and one line that says what is wrong.
fn assert_fails(ended: &Ended, code: i32, text: &str) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert_eq!(ended.err.trim_end().lines().count(), 1, "{ended:?}");
    assert!(ended.err.starts_with("unisockets: ") && ended.err.contains(text), "{ended:?}");
    assert!(ended.out.is_empty(), "{ended:?}");
}

/// Asserts that two members reach each other.
fn assert_meet(place: &Place) {
    let mut server = place.listen(&["nc", "-l", "7", "--name", "alpha"]);
    let mut client = place.start(&["nc", "alpha", "7", "--name", "beta"]);
    client.write(b"question");
    client.end_input();
    assert_eq!(server.out.wait_len(8), b"question");
    place.status("alpha", |status| status["peers"][0]["path"] == "direct");
    server.write(b"answer");
    for (process, out) in [(server, "question"), (client, "answer")] {
        let ended = process.end();
        assert_eq!((ended.code, ended.out.as_str()), (Some(0), out), "{ended:?}");
    }
}

#[test]
fn members_meet_over_tls_when_they_trust_the_servers_own_certificate() {
    let mut place = Place::new();
    write(&place, "server", &about(HOST));
    let _server = serve(&mut place, "server");
    trust(&mut place, "server.pem");
    assert_meet(&place);
}

#[test]
fn members_meet_over_tls_when_they_trust_the_authority_of_the_server() {
    let mut place = Place::new();
    let mut root = about("authority");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    fs::write(place.path("root.pem"), root.pem()).unwrap();
    fs::write(place.path("server.pem"), about(HOST).signed_by(&key, &root).unwrap().pem()).unwrap();
    fs::write(place.path("server.key"), key.serialize_pem()).unwrap();
    let _server = serve(&mut place, "server");
    trust(&mut place, "root.pem");
    assert_meet(&place);
}

/// No time heals a certificate that nobody trusts: to try again until joining times out would only hide it.
#[test]
fn a_certificate_that_nobody_trusts_is_3_and_the_sentence_names_ssl_cert_file() {
    let mut place = Place::new();
    write(&place, "server", &about(HOST));
    write(&place, "other", &about(HOST));
    let _server = serve(&mut place, "server");
    let url = format!("the certificate of the signaling server {}/v1 is not trusted: ", place.url);
    for command in [&["ping", "alpha"][..], &["nc", "-l", "7"]] {
        let ended = place.start(command).end();
        assert_fails(&ended, 3, &url);
        assert_fails(&ended, 3, "set SSL_CERT_FILE to a PEM file");
    }
    trust(&mut place, "other.pem");
    assert_fails(&place.start(&["ping", "alpha"]).end(), 3, "set SSL_CERT_FILE to a PEM file");
    fs::write(place.path("empty.pem"), "").unwrap();
    trust(&mut place, "empty.pem");
    assert_fails(&place.start(&["ping", "alpha"]).end(), 3, "set SSL_CERT_FILE to a PEM file");
    trust(&mut place, "missing.pem");
    assert_fails(&place.start(&["ping", "alpha"]).end(), 3, "missing.pem, which cannot be read");
}

#[test]
fn a_certificate_that_cannot_be_the_servers_is_3_and_says_why() {
    let mut expired = about(HOST);
    expired.not_after = date_time_ymd(2020, 1, 1);
    let mut future = about(HOST);
    future.not_before = date_time_ymd(4000, 1, 1);
    let mut authority = about(HOST);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let cases = [
        (about("signal.example"), "it is not for 127.0.0.1"),
        (expired, "it has expired"),
        (future, "it is not valid yet"),
        (authority, "CA:FALSE"),
    ];
    for (about, reason) in cases {
        let mut place = Place::new();
        write(&place, "server", &about);
        let _server = serve(&mut place, "server");
        trust(&mut place, "server.pem");
        assert_fails(&place.start(&["ping", "alpha"]).end(), 3, reason);
    }
}

#[test]
fn a_url_with_the_wrong_scheme_is_3_and_names_the_right_one() {
    let mut place = Place::new();
    write(&place, "server", &about(HOST));
    let _secure = serve(&mut place, "server");
    place.url = place.url.replace("wss://", "ws://");
    assert_fails(&place.start(&["ping", "alpha"]).end(), 3, "perhaps its URL begins with wss://");
    let _plain = place.signal(&["--listen", "127.0.0.1:0"]);
    place.url = place.url.replace("ws://", "wss://");
    assert_fails(&place.start(&["ping", "alpha"]).end(), 3, "perhaps its URL begins with ws://");
}

#[test]
fn a_server_with_unusable_files_says_which_one_and_why() {
    let place = Place::new();
    write(&place, "server", &about(HOST));
    write(&place, "other", &about(HOST));
    fs::write(place.path("garbage"), [0, 159, 146, 150]).unwrap();
    fs::write(place.path("damaged"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    fs::write(place.path("broken"), "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    fs::write(place.path("cut"), "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
    let cases = [
        ("missing", "server.key", "cannot read the certificate missing: No such file"),
        ("server.pem", "missing", "cannot read the key missing: No such file"),
        ("home", "server.key", "cannot read the certificate home: Is a directory"),
        ("garbage", "server.key", "garbage holds no certificate"),
        ("cut", "server.key", "cut holds no certificate"),
        ("server.key", "server.pem", "server.key holds no certificate"),
        ("damaged", "server.key", "the certificate damaged is damaged"),
        ("server.pem", "garbage", "garbage holds no key"),
        ("server.pem", "server.pem", "server.pem holds no key"),
        ("server.pem", "broken", "the key broken cannot be used"),
        ("server.pem", "other.key", "the key other.key does not fit the certificate server.pem"),
    ];
    for (certificate, key, text) in cases {
        let options = ["--listen", "127.0.0.1:0", "--tls-cert", certificate, "--tls-key", key];
        assert_fails(&place.start(&[&["signal", "serve"], &options[..]].concat()).end(), 1, text);
    }
}

#[test]
fn a_certificate_without_a_key_or_a_key_without_a_certificate_is_2() {
    let place = Place::new();
    for option in ["--tls-cert", "--tls-key"] {
        let ended = place.start(&["signal", "serve", "--listen", "127.0.0.1:0", option, "file"]).end();
        assert_fails(&ended, 2, "--tls-cert and --tls-key belong together");
    }
}
