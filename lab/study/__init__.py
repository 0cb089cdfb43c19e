"""The user study of the paper's Appendix E."""
