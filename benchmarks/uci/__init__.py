"""The standard UCI splits: what is published, what plain models reach, what jaxmdn reaches."""
