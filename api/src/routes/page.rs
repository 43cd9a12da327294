//! Pages of lists, newest first: how many, and where the last one ended. A page is found by the key of the last row before
//! it, so it costs the same however far down, and new rows shift nothing.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use shared::job::JobId;
use uuid::Uuid;

use crate::problem::{Code, Problem};

/// Items of a page unless the caller asks otherwise.
const DEFAULT_LIMIT: u32 = 50;

/// The most items of a page.
const MOST: u32 = 200;

/// The form of cursors; another form gets another number, so that an old one is recognised.
const FORM: u8 = 1;

/// Where a page begins and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// The last item of the page before.
    pub after: Option<JobId>,
    limit: u32,
}

impl Page {
    /// Reads the query's `limit` and `cursor`.
    ///
    /// # Errors
    /// [`Code::QueryInvalid`].
    pub fn new(limit: Option<u32>, cursor: Option<&str>) -> Result<Self, Problem> {
        let limit = limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MOST).contains(&limit) {
            return Err(Problem::new(Code::QueryInvalid, format!("limit: is {limit}; 1 to {MOST} are allowed.")));
        }
        let after = match cursor {
            None => None,
            Some(text) => Some(decode(text).ok_or_else(|| {
                Problem::new(
                    Code::QueryInvalid,
                    "cursor: is not one of ours; send the `next_cursor` of the page before as it stands, or none for the first page.",
                )
            })?),
        };
        Ok(Self { after, limit })
    }

    /// How many to read: one more than shown tells whether there is another page.
    #[must_use]
    pub fn to_read(self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// Cuts what was read to the page, and makes the cursor of the next one if there is one.
    #[must_use]
    pub fn cut<T>(self, mut items: Vec<T>, id: impl Fn(&T) -> JobId) -> (Vec<T>, Option<String>) {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        if items.len() <= limit {
            return (items, None);
        }
        items.truncate(limit);
        let next = items.last().map(|last| encode(id(last)));
        (items, next)
    }
}

fn encode(last: JobId) -> String {
    let mut bytes = [FORM; 17];
    bytes[1..].copy_from_slice(last.0.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn decode(text: &str) -> Option<JobId> {
    // 17 bytes are 23 characters; what is longer need not be looked at.
    let bytes = (text.len() == 23).then(|| BASE64_URL_SAFE_NO_PAD.decode(text).ok())??;
    let (FORM, id) = bytes.split_first().map(|(form, id)| (*form, id))? else { return None };
    Uuid::from_slice(id).ok().map(JobId)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: u128) -> JobId {
        JobId(Uuid::from_u128(number))
    }

    #[test]
    fn a_cursor_leads_on_from_the_last_item_shown() {
        let page = Page::new(Some(2), None).unwrap();
        assert_eq!((page.after, page.to_read()), (None, 3));
        let (shown, next) = page.cut(vec![job(9), job(8), job(7)], |id| *id);
        assert_eq!(shown, [job(9), job(8)]);
        assert_eq!(Page::new(None, next.as_deref()).unwrap(), Page { after: Some(job(8)), limit: 50 });
        assert_eq!(page.cut(vec![job(7), job(6)], |id| *id), (vec![job(7), job(6)], None));
        assert_eq!(page.cut(Vec::new(), |id: &JobId| *id), (Vec::new(), None));
    }

    #[test]
    fn nonsense_is_refused() {
        let cursor = encode(job(u128::MAX));
        assert!(Page::new(None, Some(&cursor)).is_ok());
        let other_form = BASE64_URL_SAFE_NO_PAD.encode([2; 17]);
        for wrong in ["", "x", &cursor[..22], &format!("{cursor}A"), &cursor.replace('_', "!"), &other_form, "ééééééééééé."] {
            assert_eq!(Page::new(None, Some(wrong)).unwrap_err().code(), Code::QueryInvalid, "{wrong}");
        }
        for limit in [0, 201, u32::MAX] {
            assert_eq!(Page::new(Some(limit), None).unwrap_err().code(), Code::QueryInvalid);
        }
        assert!(Page::new(Some(1), None).is_ok() && Page::new(Some(200), None).is_ok());
    }
}
