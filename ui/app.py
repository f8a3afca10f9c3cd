"""The playground's entry: `python -m streamlit run ui/app.py` from the project's root."""

import streamlit as st

from ui.chrome import ASSETS, VIEWS

st.set_page_config(page_title="Anthesis", page_icon=str(ASSETS / "icon.svg"), layout="wide")
st.logo(str(ASSETS / "logo.svg"), size="large", icon_image=str(ASSETS / "icon.svg"))
st.navigation(
    [
        st.Page(VIEWS / "playground.py", title="Playground", icon=":material/local_florist:", default=True),
        st.Page(VIEWS / "tokens.py", title="Tokens", icon=":material/segment:"),
        st.Page(VIEWS / "finetune.py", title="Fine-tune", icon=":material/tune:"),
        st.Page(VIEWS / "jobs.py", title="Jobs", icon=":material/timeline:"),
        st.Page(VIEWS / "models.py", title="Models", icon=":material/account_tree:"),
        st.Page(VIEWS / "usage.py", title="Usage", icon=":material/bar_chart:"),
    ]
).run()
