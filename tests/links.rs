//! The documentation, held against itself: every link leads to a file that is there, and to a
//! heading in it; every page of `docs/` is reached from README.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const PAGES: [&str; 4] = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README and its like, and every page of `docs/`.
fn pages() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("docs")).expect("docs");
    let docs = docs.map(|entry| entry.expect("an entry").path());
    let docs = docs.filter(|path| path.extension().is_some_and(|ext| ext == "md"));
    PAGES.iter().map(|page| root().join(page)).chain(docs).collect()
}

/// What links and pictures of a page name, but for addresses of the web.
fn links(text: &str) -> Vec<&str> {
    let of_markdown = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let of_pictures = ["src=\"", "srcset=\""]
        .into_iter()
        .flat_map(|begin| text.split(begin).skip(1).filter_map(|rest| rest.split('"').next()));
    of_markdown.chain(of_pictures).filter(|link| !link.contains("://") && !link.contains(' ')).collect()
}

/// The anchors that headings of a page make, as GitHub does it.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let headings = headings.map(|line| line.trim_start_matches('#').trim().to_lowercase());
    let kept = |c: &char| c.is_alphanumeric() || "-_ ".contains(*c);
    headings.map(|heading| heading.chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

#[test]
fn every_link_leads_somewhere_and_every_page_is_reached() {
    let mut reached = BTreeSet::from([root().join("README.md")]);
    let mut broken = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).expect("a page");
        for link in links(&text) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let beside = page.parent().expect("a directory");
            let target = if path.is_empty() { Ok(page.clone()) } else { beside.join(path).canonicalize() };
            let is_there = target.as_ref().is_ok_and(|target| {
                anchor.is_empty() || anchors(&fs::read_to_string(target).unwrap_or_default()).contains(anchor)
            });
            if !is_there {
                broken.push(format!("{}: {link}", page.display()));
            }
            reached.extend(target);
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    let alone: Vec<_> = pages().into_iter().filter(|page| !reached.contains(page)).collect();
    assert!(alone.is_empty(), "{alone:?}");
}
