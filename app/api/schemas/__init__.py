"""The bodies that the API takes and gives, as pydantic models. What comes in is strict and knows every member.

What goes out is written from rows (`app.progress.view`, `app.api.views`); its models here are the documentation, and
the tests hold the answers against them.
"""
