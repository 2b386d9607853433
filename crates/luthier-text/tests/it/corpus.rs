//! Documents and splits.

use luthier_text::corpus::{Source, read, read_all, split};

fn source(json: &str) -> Source {
    serde_json::from_str(json).unwrap()
}

#[test]
fn files_become_documents() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let documents = |json: String| read(&source(&json)).unwrap();
    let text = write("a.txt", b"\xef\xbb\xbfone\n\ntwo\x0cthree\x0c \n");
    assert_eq!(documents(format!("{text:?}")), ["one\n\ntwo", "three"]);
    let lines = write("a.jsonl", b"{\"text\": \"one\"}\n\n{\"text\": \"two\", \"more\": 1}\n");
    assert_eq!(documents(format!("{lines:?}")), ["one", "two"]);
    let table = write("a.tsv", b"en\tid\none\tsatu\ntwo\t\nthree\ttiga\n");
    assert_eq!(documents(format!(r#"{{"file": {table:?}, "column": 1}}"#)), ["id", "satu", "tiga"]);
    assert_eq!(
        documents(format!(r#"{{"file": {table:?}, "column": "id", "header": true}}"#)),
        ["satu", "tiga"]
    );

    let repeated = write("b.tsv", b"one\ttwo\nuno\tdos\none\ttwo\n");
    assert_eq!(documents(format!(r#"{{"file": {repeated:?}, "column": 1, "join": true}}"#)), ["two\n\ndos"]);

    let error = |json: String| read(&source(&json)).unwrap_err().to_string();
    let column = error(format!(r#"{{"file": {table:?}, "column": 2}}"#));
    assert!(column.contains("row 1: wanted column 2 (from 0), came 2 columns"), "{column}");
    assert!(
        error(format!(r#"{{"file": {table:?}, "column": "fr", "header": true}}"#))
            .contains("its columns are en, id")
    );
    let bad = write("bad.txt", b"ab\xff");
    assert!(
        error(format!("{bad:?}")).ends_with("bad.txt: not UTF-8 at byte 2 (0xff); convert the file to UTF-8")
    );
    assert!(error("\"/no/such/file\"".to_owned()).starts_with("/no/such/file: "));
    let blank = write("blank.txt", b" \n");
    assert!(read_all(&[source(&format!("{blank:?}"))]).unwrap_err().to_string().contains("no text in"));
    assert!(serde_json::from_str::<Source>(r#"{"file": "x", "column": 1, "colour": 2}"#).is_err());
}

#[test]
fn many_documents_are_split_whole_and_stay_on_their_side() {
    let documents: Vec<String> = (0..1000).map(|number| format!("document {number}")).collect();
    let parts = split(documents.clone(), 0.1, 1).unwrap();
    assert!((70..130).contains(&parts.validation.len()), "{}", parts.validation.len());
    assert_eq!(parts.train.len() + parts.validation.len(), 1000);
    let fewer = split(documents[..900].to_vec(), 0.1, 1).unwrap();
    assert!(fewer.validation.iter().all(|document| parts.validation.contains(document)));
    assert_ne!(split(documents, 0.1, 2).unwrap().validation, parts.validation);
}

#[test]
fn few_documents_are_cut_at_a_paragraph() {
    let paragraphs: Vec<String> = (0..20).map(|number| format!("Paragraph {number:02}.")).collect();
    let parts = split(vec![paragraphs.join("\n\n")], 0.1, 1).unwrap();
    assert_eq!(parts.validation, ["Paragraph 18.\n\nParagraph 19."]);
    assert_eq!(parts.train[0].len() + parts.validation[0].len(), paragraphs.join("\n\n").len());
    assert!(
        split(vec!["no blank line".to_owned()], 0.1, 1).unwrap_err().to_string().contains("no blank line")
    );
    assert!(split(vec!["a\n\nb".to_owned()], 1.5, 1).unwrap_err().to_string().contains("between 0 and 1"));
    assert!(split(vec!["a\n\nb".to_owned()], f64::NAN, 1).is_err());
}
