"""A model that stays loaded, for Python programs: questions about pictures, and chats.

with vlmbatch.Model("demo") as model:
    for record in model.ask(["a.png", "b.png"], "What is this?"):
        print(record.id, record.text)
"""

from vlmbatch.model.model import Model
from vlmbatch.model.replies import Reply, ReplyStream

__all__ = ["Model", "Reply", "ReplyStream"]
