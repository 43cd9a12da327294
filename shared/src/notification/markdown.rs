//! Markdown to the two forms of a mail: HTML and text.
//!
//! What must stay true: the HTML holds only tags that are written here; HTML within the Markdown is shown as it was written, links lead to
//! https, http and mailto and nowhere else, pictures are told by their words (one that is fetched would tell that the mail was read).

use std::fmt::Write;

use pulldown_cmark::{Event, HeadingLevel, Parser, Tag, TagEnd};

/// What is well-formed of a mail's Markdown, as HTML and as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formatted {
    /// Sanitised HTML, without a page around it.
    pub html: String,
    /// The same to be read where HTML is not.
    pub text: String,
}

/// Sets Markdown in both forms.
#[must_use]
pub fn format(markdown: &str) -> Formatted {
    let mut writer = Writer::default();
    for event in Parser::new(markdown) {
        writer.event(event);
    }
    let lines: Vec<&str> = writer.text.lines().map(str::trim_end).collect();
    Formatted { html: writer.html, text: lines.join("\n").trim_matches('\n').to_owned() }
}

#[derive(Default)]
struct Writer {
    html: String,
    text: String,
    /// The number of the next item, by the list that it is in; `None` in one without numbers.
    lists: Vec<Option<u64>>,
    /// Links that are open: where they lead, and where their words begin in the text.
    links: Vec<Option<(String, usize)>>,
}

impl Writer {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            // What looks like HTML is text here.
            Event::Text(text) | Event::Html(text) | Event::InlineHtml(text) => self.words(&text),
            Event::Code(text) => {
                self.html.push_str("<code>");
                self.words(&text);
                self.html.push_str("</code>");
            }
            Event::SoftBreak => self.both("\n", "\n"),
            Event::HardBreak => self.both("<br>\n", "\n"),
            Event::Rule => {
                self.html.push_str("<hr>\n");
                self.apart();
                self.text.push_str("--\n\n");
            }
            // Extensions that are not on.
            Event::InlineMath(_) | Event::DisplayMath(_) | Event::FootnoteReference(_) | Event::TaskListMarker(_) => {}
        }
    }

    fn both(&mut self, html: &str, text: &str) {
        self.html.push_str(html);
        self.text.push_str(text);
    }

    fn words(&mut self, text: &str) {
        escape(&mut self.html, text);
        self.text.push_str(text);
    }

    /// Begins a new line of the text.
    fn line(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push('\n');
        }
    }

    /// Begins a new paragraph of the text.
    fn apart(&mut self) {
        self.line();
        if !self.text.is_empty() && !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }

    fn start(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::Paragraph => {
                self.html.push_str("<p>");
                if self.lists.is_empty() {
                    self.apart();
                }
            }
            Tag::Heading { level, .. } => {
                self.apart();
                self.html.push_str(heading(level).0);
            }
            Tag::BlockQuote(_) => {
                self.apart();
                self.html.push_str("<blockquote>\n");
            }
            Tag::CodeBlock(_) => {
                self.apart();
                self.html.push_str("<pre><code>");
            }
            Tag::HtmlBlock => {
                self.apart();
                self.html.push_str("<p>");
            }
            Tag::List(first) => {
                if self.lists.is_empty() {
                    self.apart();
                }
                match first {
                    Some(first) => _ = writeln!(self.html, "<ol start=\"{first}\">"),
                    None => self.html.push_str("<ul>\n"),
                }
                self.lists.push(first);
            }
            Tag::Item => {
                self.line();
                let depth = self.lists.len().saturating_sub(1);
                self.text.push_str(&"  ".repeat(depth.min(10)));
                match self.lists.last_mut() {
                    Some(Some(number)) => {
                        _ = write!(self.text, "{number}. ");
                        *number = number.saturating_add(1);
                    }
                    _ => self.text.push_str("- "),
                }
                self.html.push_str("<li>");
            }
            Tag::Emphasis => self.html.push_str("<em>"),
            Tag::Strong => self.html.push_str("<strong>"),
            Tag::Link { dest_url, .. } => {
                let link = link(&dest_url);
                if let Some(link) = &link {
                    self.html.push_str("<a href=\"");
                    escape(&mut self.html, link);
                    self.html.push_str("\">");
                }
                self.links.push(link.map(|link| (link, self.text.len())));
            }
            // Its words come as text; extensions are not on.
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Paragraph | TagEnd::HtmlBlock => {
                self.html.push_str("</p>\n");
                if self.lists.is_empty() {
                    self.apart();
                }
            }
            TagEnd::Heading(level) => {
                self.html.push_str(heading(level).1);
                self.apart();
            }
            TagEnd::BlockQuote(_) => {
                self.html.push_str("</blockquote>\n");
                self.apart();
            }
            TagEnd::CodeBlock => {
                self.html.push_str("</code></pre>\n");
                self.apart();
            }
            TagEnd::List(ordered) => {
                self.html.push_str(if ordered { "</ol>\n" } else { "</ul>\n" });
                self.lists.pop();
                if self.lists.is_empty() {
                    self.apart();
                }
            }
            TagEnd::Item => {
                self.html.push_str("</li>\n");
                self.line();
            }
            TagEnd::Emphasis => self.html.push_str("</em>"),
            TagEnd::Strong => self.html.push_str("</strong>"),
            TagEnd::Link => {
                if let Some(Some((link, at))) = self.links.pop() {
                    self.html.push_str("</a>");
                    if self.text.get(at..) != Some(link.as_str()) {
                        _ = write!(self.text, " ({link})");
                    }
                }
            }
            _ => {}
        }
    }
}

const fn heading(level: HeadingLevel) -> (&'static str, &'static str) {
    match level {
        HeadingLevel::H1 => ("<h1>", "</h1>\n"),
        HeadingLevel::H2 => ("<h2>", "</h2>\n"),
        _ => ("<h3>", "</h3>\n"),
    }
}

/// Where a link may lead, in its one spelling.
fn link(destination: &str) -> Option<String> {
    let url = url::Url::parse(destination).ok()?;
    matches!(url.scheme(), "https" | "http" | "mailto").then(|| url.into())
}

/// Writes text so that it is text, within a tag's quotes too.
pub(super) fn escape(html: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c if c.is_control() && c != '\n' => {}
            c => html.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let formatted = format(
            "# Hello\n\nYour *export* is **ready**:\n[get it](https://a.example/d/1?a=b&c=d).\n\n1. one\n2. two\n   - in it\n\n> quoted\n\nBye",
        );
        assert_eq!(
            formatted.html,
            "<h1>Hello</h1>\n<p>Your <em>export</em> is <strong>ready</strong>:\n<a href=\"https://a.example/d/1?a=b&amp;c=d\">get it</a>.</p>\n\
             <ol start=\"1\">\n<li>one</li>\n<li>two<ul>\n<li>in it</li>\n</ul>\n</li>\n</ol>\n<blockquote>\n<p>quoted</p>\n</blockquote>\n<p>Bye</p>\n"
        );
        assert_eq!(
            formatted.text,
            "Hello\n\nYour export is ready:\nget it (https://a.example/d/1?a=b&c=d).\n\n1. one\n2. two\n  - in it\n\nquoted\n\nBye"
        );
        assert_eq!(format("<https://a.example/>").text, "https://a.example/");
    }

    #[test]
    fn nothing_but_our_own_tags_comes_out() {
        for (markdown, html) in [
            ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>\n"),
            ("a <img src=x onerror=alert(1)> b", "<p>a &lt;img src=x onerror=alert(1)&gt; b</p>\n"),
            ("[x](javascript:alert(1))", "<p>x</p>\n"),
            ("[x](JaVaScRiPt:alert(1))", "<p>x</p>\n"),
            ("[x](data:text/html,x)", "<p>x</p>\n"),
            ("[x](/relative)", "<p>x</p>\n"),
            ("![words](https://a.example/pixel.gif)", "<p>words</p>\n"),
            ("[x](https://a.example/\"onclick=\"x)", "<p><a href=\"https://a.example/%22onclick=%22x\">x</a></p>\n"),
            ("```\n</code></pre><script>\n```", "<pre><code>&lt;/code&gt;&lt;/pre&gt;&lt;script&gt;\n</code></pre>\n"),
        ] {
            assert_eq!(format(markdown).html, html, "{markdown}");
        }
    }
}
